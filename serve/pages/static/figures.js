"use strict";
// Tables of figures with their intervals.
function cell(value, detail) {
  const node = element("td", "", value);
  if (detail) node.append(element("small", "", detail));
  return node;
}

function rowOf(name, ...cells) {
  const node = element("tr"), head = element("th", "", name);
  head.scope = "row";
  node.append(head, ...cells);
  return node;
}
