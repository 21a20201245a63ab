"use strict";
// Model output is hostile. It becomes elements with text in them and nothing else: no HTML is parsed, no link can be
// followed, no image is fetched. Expressions are bounded, so that no text makes them slow.
const INLINE = /`([^`\n]{1,2000})`|\*\*([^*\n]{1,2000})\*\*|\*([^*\s][^*\n]{0,2000})\*|(!?)\[([^[\]\n]{0,500})\]\(([^()\s]{1,2000})\)/g;
const BLOCK = {
  fence: /^ {0,3}(`{3,}|~{3,})/, heading: /^ {0,3}#{1,6} +(.*)$/, quote: /^ {0,3}> ?(.*)$/,
  bullet: /^ {0,8}[-*+] +(.*)$/, number: /^ {0,8}(\d{1,9})[.)] +(.*)$/,
};

function renderInline(parent, text) {
  let end = 0;
  const add = (tag, content, className) => {
    const node = document.createElement(tag);
    node.textContent = content;
    if (className) node.className = className;
    parent.append(node);
  };
  for (const found of text.matchAll(INLINE)) {
    parent.append(text.slice(end, found.index));
    end = found.index + found[0].length;
    const [, code, bold, italic, image, label, target] = found;
    if (code !== undefined) add("code", code);
    else if (bold !== undefined) add("strong", bold);
    else if (italic !== undefined) add("em", italic);
    else { parent.append(image ? `[image: ${label}]` : label); add("span", ` (${target})`, "target"); }
  }
  parent.append(text.slice(end));
}

function renderMarkdown(text) {
  const page = document.createDocumentFragment(), lines = text.split(/\r?\n/);
  let paragraph = [];
  const append = (tag, content, parent = page) => {
    const node = document.createElement(tag);
    if (content !== undefined) renderInline(node, content);
    parent.append(node);
    return node;
  };
  const flush = () => { if (paragraph.length) append("p", paragraph.join("\n")); paragraph = []; };
  for (let at = 0; at < lines.length; at++) {
    const line = lines[at];
    const fence = BLOCK.fence.exec(line), heading = BLOCK.heading.exec(line), quote = BLOCK.quote.exec(line);
    const bullet = BLOCK.bullet.exec(line), number = BLOCK.number.exec(line);
    if (fence || heading || quote || bullet || number || !line.trim()) flush();
    if (fence) {
      const code = [];
      while (++at < lines.length && !lines[at].trimStart().startsWith(fence[1])) code.push(lines[at]);
      append("code", undefined, append("pre")).textContent = code.join("\n");
    } else if (heading) append("h3", heading[1]);
    else if (quote) append("p", quote[1], page.lastChild?.nodeName === "BLOCKQUOTE" ? page.lastChild : append("blockquote"));
    else if (bullet || number) {
      const tag = bullet ? "UL" : "OL";
      let list = page.lastChild;
      if (list?.nodeName !== tag) {
        list = append(tag.toLowerCase());
        if (number) list.start = Number(number[1]);
      }
      append("li", bullet ? bullet[1] : number[2], list);
    } else if (line.trim()) paragraph.push(line);
  }
  flush();
  return page;
}
