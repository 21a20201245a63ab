"use strict";
// Helpers of every page. Text from people and models enters a page as text nodes and is never parsed as HTML.
const byId = (id) => document.getElementById(id);

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// An id that nothing else has; pages that are not encrypted have no crypto.randomUUID.
const newId = () => crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;

// Whether a key press belongs to an input method, such as the Enter that accepts its suggestion; some browsers say so
// by the code 229 alone.
const isComposing = (event) => event.isComposing || event.keyCode === 229;

// The digit of a key, 0 for none. By its place on the keyboard: French layouts have digits with Shift alone.
const digitOf = (event) => Number(/^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1] ?? (/^[1-9]$/.test(event.key) ? event.key : 0));

// `fetch` whose error says in words that there is no answer; browsers say "Failed to fetch", each differently.
async function reach(path, options) {
  try { return await fetch(path, options); } catch (error) {
    throw error instanceof TypeError ? Object.assign(new Error("the server does not answer"), { unreachable: true }) : error;
  }
}
