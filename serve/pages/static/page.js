"use strict";
// What every page uses. All that comes from a person or a model enters a page as text: it is never read as HTML.
const byId = (id) => document.getElementById(id);

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}
