// Tables that scroll sideways can be reached and scrolled by keyboard. The theme wraps them after the page has loaded.
new MutationObserver(() => {
  for (const wrap of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])")) wrap.tabIndex = 0;
}).observe(document, { childList: true, subtree: true });
