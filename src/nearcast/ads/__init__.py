"""What is promoted for items: the settings of an expansion table, and its ads as columns that rules are asked of.

Arrays in, arrays out: knows nothing of stores, look-ups or HTTP.
"""
