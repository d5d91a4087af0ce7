"""The version of the software: read by the build and recorded in every manifest."""

__version__ = "0.1.0"
