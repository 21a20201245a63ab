"use strict";
// Helpers of every page. Text from people and models enters a page as text nodes and is never parsed as HTML.
const byId = (id) => document.getElementById(id);

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}
