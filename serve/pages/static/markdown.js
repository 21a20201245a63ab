"use strict";
// Texts of people and models, which the server has parsed: trees of elements, of which these are built and no others.
const ELEMENTS = new Set(["p", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "code", "em", "strong", "s", "span", "br", "hr",
  "table", "thead", "tbody", "tr", "th", "td"]);
// Each of these has a direction of its own: an answer may have lines in two scripts.
const WITH_DIRECTION = new Set(["p", "h3", "h4", "h5", "h6", "li", "blockquote", "th", "td"]);

function builtMarkdown(nodes) {
  const fragment = document.createDocumentFragment();
  for (const found of nodes) {
    if (typeof found === "string") { fragment.append(found); continue; }
    const node = element(ELEMENTS.has(found.tag) ? found.tag : "span", found.kind === "target" ? "target" : "");
    if (WITH_DIRECTION.has(found.tag)) node.dir = "auto";
    if (found.tag === "ol" && found.start !== undefined) node.start = found.start;
    node.append(builtMarkdown(found.content));
    fragment.append(node);
  }
  return fragment;
}

// Shows a text in an element: as it was written, or with `parsed` as Markdown.
function showText(body, text, parsed) {
  body.classList.toggle("raw", !parsed);
  body.replaceChildren(parsed ? builtMarkdown(parsed) : text);
}

// A button that turns the text of an element from Markdown to how it was written, and back.
function rawButton(body, text, parsed) {
  const node = element("button", "raw-button", "Raw");
  node.type = "button";
  node.title = "Show the text as it was written";
  node.setAttribute("aria-pressed", "false");
  node.addEventListener("click", () => {
    const raw = node.getAttribute("aria-pressed") === "false";
    node.setAttribute("aria-pressed", String(raw));
    showText(body, text, raw ? null : parsed);
  });
  return node;
}
