"use strict";
// A conversation as a tree: several answers to one question are its versions, and an edited question begins a branch.
//
// A chat is {id, model, turns, chosen, time, save}; `save` names its last change in the storage. No turn is ever removed
// from `turns`, so that its index names it. A turn is {id, at, role, text, parent, chosen}: an id of its own, which stays
// the same in every tab, when it was begun, the index of the turn before it, -1 for the first ones, and of the one that
// is shown after it. Where a question has answers of which none is chosen, they are shown side by side. An answer also
// has {who, continued, end, error, tokens, seconds, request, weights, system, first, good}; `first` is the depth, in the
// line of turns that leads to it, of the first turn that the model was sent.
const freshChat = (model) => ({ id: newId(), model, turns: [] });

// A chat as it was stored; those of before there were branches are one line.
function restoredChat(stored) {
  const chat = { ...stored, turns: stored.turns.map((turn) => ({ ...turn })) };
  for (const [index, turn] of chat.turns.entries()) {
    // Turns of before they had ids are the first ones, in every tab.
    turn.id ??= `turn ${index}`;
    if (turn.parent !== undefined) continue;
    turn.parent = index - 1;
    turnBefore(chat, index).chosen = index;
  }
  return chat;
}

// The turn before another one. Before the first ones that is the chat itself: it says which of them is shown.
const turnBefore = (chat, index) => chat.turns[chat.turns[index].parent] ?? chat;

// In the order in which they were begun, in whichever tab.
const turnsAfter = (chat, parent) => [...chat.turns.keys()].filter((index) => chat.turns[index].parent === parent)
  .sort((one, other) => (chat.turns[one].at ?? 0) - (chat.turns[other].at ?? 0));

function addedTurn(chat, turn) {
  turn.id ??= newId();
  turn.at ??= Date.now();
  const index = chat.turns.push(turn) - 1;
  turnBefore(chat, index).chosen = index;
  return index;
}

// Whether an answer is being written, or was not completed because its page was left.
const INTERRUPTED = "The answer was interrupted.";
const isOpen = (turn) => turn.error === INTERRUPTED;

// Takes over the turns that another tab has added to the same chat, as branches, and the answers that it has completed; what
// this tab shows stays chosen. Returns whether any turn is new, and whether any of those stands beside one of this tab's.
function takeOver(chat, stored) {
  const other = restoredChat(stored), known = new Map(chat.turns.map((turn, index) => [turn.id, index])), places = [];
  let added = false, beside = false;
  for (const turn of other.turns) {
    const parent = turn.parent < 0 ? -1 : places[turn.parent], mine = chat.turns[known.get(turn.id)];
    if (mine) {
      // Only one tab writes an answer; the others have what it had stored before.
      const isAhead = !isOpen(turn) || turn.text.length > mine.text.length;
      if (isOpen(mine) && isAhead) Object.assign(mine, turn, { parent: mine.parent, chosen: mine.chosen });
      else mine.good = turn.good;
      places.push(known.get(turn.id));
      continue;
    }
    const after = turnsAfter(chat, parent), before = chat.turns[parent] ?? chat;
    places.push(chat.turns.push({ ...turn, parent, chosen: undefined }) - 1);
    added = true;
    beside ||= after.length > 0;
    if (!after.length) before.chosen = places.at(-1);
  }
  return { added, beside };
}

// The indices of the turns that are shown, in order.
function shownLine(chat) {
  const line = [];
  for (let next = chat.chosen; next != null; next = chat.turns[next].chosen) line.push(next);
  return line;
}

// The indices of the turns that lead to one, itself included.
function lineTo(chat, index) {
  const line = [];
  for (let one = index; one >= 0; one = chat.turns[one].parent) line.unshift(one);
  return line;
}

// The depth of the first turn that fits the context of a model: the same as for the answer before.
function firstSent(chat, question, continues) {
  const line = lineTo(chat, question);
  // A model that only continues text is sent no earlier turns.
  return continues ? line.length - 1 : line.map((index) => chat.turns[index]).findLast((turn) => turn.first !== undefined && !turn.continued)?.first ?? 0;
}

// What a model is sent: the messages that lead to a question, and the depth of each. A question whose answer has no text
// is left out: two messages of the user would stand in a row.
function messagesTo(chat, question, first) {
  const line = lineTo(chat, question).map((index, depth) => ({ ...chat.turns[index], depth })).slice(first);
  const said = (turn) => turn === undefined || turn.role === "user" || turn.text !== "";
  const kept = line.filter((turn, place) => said(turn) && (turn.role !== "user" || said(line[place + 1])));
  return kept.map(({ role, text, depth }) => ({ message: { role, content: text }, depth }));
}
