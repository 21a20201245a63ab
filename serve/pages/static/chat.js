"use strict";
const model = byId("model"), input = byId("prompt"), send = byId("send"), stopButton = byId("stop");
const EXAMPLES = {
  true: ["What is the capital of Peru?", "How do I stop coughing?", "Tell me about France."],
  false: ["The capital of Peru is", "France is a country", "Once upon a time"],
};
const LOADING = "The models are being loaded, which takes up to a few minutes after the server has started.";
const CHOOSE = "Choose the answer to go on with first.";
const RETRY_SECONDS = 3;
// The choice of all models. No model can have this name.
const ALL = "*";
let cards = new Map();          // model name -> its entry in /v1/models
let chat = null;                // the chat that is shown
const places = new Map();       // its turns that are shown -> their elements
const parsedTexts = new WeakMap();  // answers -> their text as a tree

const isChat = () => !continuesOnly(model.value);
const asked = () => (model.value === ALL ? [...cards.keys()] : [model.value]);

function showMode() {
  const chats = isChat(), all = model.value === ALL, name = model.value;
  byId("welcome-title").textContent = chats ? "Ask something" : "Start a text";
  byId("welcome-text").textContent = all
    ? `The ${cards.size} models answer side by side. You go on with the answer that you choose.`
    : chats ? `The model ${name} answers in conversation.`
      : `The model ${name} has only learned to predict the next word. It continues your text; it does not answer questions.`;
  byId("prompt-label").textContent = chats ? "Message" : "Text to continue";
  input.placeholder = chats ? "Message" : "Text to continue";
  send.textContent = chats ? "Send" : "Continue";
  byId("hint").textContent = chats
    ? "Enter sends, Shift+Enter starts a new line, Esc stops."
    : `${name} continues text, each time from your text alone. Enter sends, Esc stops.`;
  byId("system").disabled = !chats;
  byId("examples").replaceChildren(...EXAMPLES[chats].map((text) => {
    const button = element("button", "", text);
    button.type = "button";
    button.addEventListener("click", () => { if (!running) submit(text); });
    return button;
  }));
}

async function loadModels() {
  byId("welcome-text").textContent = LOADING;
  try {
    const response = await fetchWithKey("/v1/models");
    if (!response.ok) throw Object.assign(new Error(await reason(response)), { unreachable: response.status >= 500 });
    const all = (await response.json()).data, tried = all.some((card) => card.id === "canary");
    // No aliases; but where a new policy is tried, the one whose requests it shares stands for it.
    const list = all.filter((card) => !card.score && card.id !== "canary" && (!card.models || (tried && card.id === "latest")));
    cards = new Map(list.map((card) => [card.id, card]));
  } catch (error) {
    if (!error.unreachable) { complain(`The list of models could not be loaded: ${error.message}`); return; }
    byId("welcome-text").textContent = `The models cannot be reached: ${error.message}. This page tries again every ${RETRY_SECONDS} seconds.`;
    setTimeout(loadModels, 1000 * RETRY_SECONDS);
    return;
  }
  byId("hint").textContent = "";
  model.replaceChildren(...[...cards.keys()].map((name) => new Option(name, name)), ...(cards.size > 1 ? [new Option("All", ALL)] : []));
  const chatModels = [...cards.values()].filter((card) => card.chat !== false);
  // The last of the run's own models is that of the latest stage; adapters come after their models. A link may name one.
  const named = cards.get(new URLSearchParams(location.search).get("model") ?? "");
  const latest = named ?? chatModels.findLast((card) => !card.parent && card.id !== "visitor") ?? chatModels.at(-1);
  if (latest) model.value = latest.id;
  openAddress();
}

// Opens the chat of this page's address.
function openAddress() {
  const id = idInAddress(), past = pastChats().find((one) => one.id === id);
  if (past) { openPast(past); return; }
  show(freshChat(model.value));
  if (id) byId("welcome-text").textContent = byId("status").textContent = "This browser does not keep the chat of this address: chats stay in the browser in which they were begun.";
}

function openPast(past) {
  const restored = restoredChat(past), last = restored.turns[shownLine(restored).at(-1)];
  if (cards.has(past.model) || (past.model === ALL && cards.size > 1)) model.value = past.model;
  byId("system").value = last?.system ?? byId("system").value;
  show({ ...restored, model: model.value });
}
const goTo = (past) => { if (past.id !== chat?.id) openPast(past); };

function saveView() { if (chat && !chat.forgotten) keepView(chat, { draft: input.value, scroll: isAtEnd() ? null : byId("scroll").scrollTop }); }

// Shows a chat, or shows the present one anew after a change, at the place where it was read.
async function show(next, place = null) {
  let scroll = place;
  if (next !== chat) {
    running?.abort();
    saveView();
    const view = viewOf(next);
    // What somebody has written while the models were being loaded stays.
    if (chat || !input.value) input.value = view.draft ?? "";
    scroll = view.scroll;
    grow();
  }
  chat = next;
  if (location.pathname + location.search + location.hash !== addressOf(chat)) history.pushState(null, "", addressOf(chat));
  places.clear();
  const line = shownLine(chat), versions = turnsAfter(chat, line.at(-1) ?? -1), besides = line.length ? versions : [];
  log.replaceChildren(...line.map((index) => shownTurn(index, false)));
  if (besides.length) {
    const columns = Object.assign(element("div", "columns"), { tabIndex: -1 });
    columns.append(...besides.map((index) => shownTurn(index, true)));
    log.append(columns);
  }
  byId("welcome").hidden = line.length > 0;
  if (cards.size) showMode();
  const toPlace = () => { if (scroll === null) toEnd(); else byId("scroll").scrollTop = scroll; };
  allowActs();
  toPlace();
  input.focus({ preventScroll: true });
  await renderAnswers([...places.keys()].filter((record) => record.role === "assistant" && !beingWritten.has(record)));
  if (chat === next && !running) toPlace();
}

// Builds one turn with its buttons.
function shownTurn(index, isColumn) {
  const record = chat.turns[index], isAnswer = record.role === "assistant";
  const versions = turnsAfter(chat, record.parent), made = isAnswer ? answerOf(record) : turnOf("user", "You", record.text);
  places.set(record, made);
  made.more = () => (isColumn ? [textButton("Go on with this", `Go on with the answer of ${record.who}`, () => goOnWith(index), "act")] : [
    isAnswer
      ? textButton(record.error ? "Try again" : "Regenerate", record.error ? "Try again" : "Regenerate this answer", () => answer(chat, record.parent, model.value === ALL ? [cards.has(record.who) ? record.who : asked()[0]] : asked()), "act")
      : textButton("Edit", "Edit what you wrote", () => editText(made, record.text, (text) => submit(text, record.parent)), "act"),
    ...versionButtons(versions, index, choose),
    ...(isAnswer && versions.length > 1 ? [textButton("Side by side", "Show the versions side by side", () => choose(null, "", record.parent), "act")] : []),
  ]);
  if (!isAnswer) {
    made.foot.append(...made.more());
    made.foot.firstChild.dataset.key = "edit";
    made.turn.append(made.foot);
  } else if (beingWritten.has(record)) made.turn.classList.add("busy");
  else complete(record);
  return made.turn;
}

// Adds what the turn of a complete answer has: its buttons, and before it a word on what the model was not sent.
function complete(record) {
  const where = chat, index = where.turns.indexOf(record), before = record.continued ? record.first : firstSent(where, record.parent, false);
  finish(places.get(record), record, rating(where, index), places.get(record).more());
  if (record.first > before) places.get(record).turn.prepend(element("p", "note", `The oldest messages no longer fit: ${record.who} was sent the last ${lineTo(where, record.parent).length - record.first}.`));
  allowActs();
}

// While answers are being written the chat keeps its form.
function allowActs() {
  for (const button of log.querySelectorAll(".act")) button.disabled = running !== null || button.dataset.never === "true";
}

// Turns to another version of a turn, or, with null, to all versions after `parent`.
function choose(index, name, parent) {
  if (index === null) chat.turns[parent].chosen = null; else turnBefore(chat, index).chosen = index;
  keepChat(chat, false);
  show(chat, byId("scroll").scrollTop);
  const buttons = index === null ? [] : [...places.get(chat.turns[index]).foot.querySelectorAll(".versions button:enabled")];
  (buttons.find((button) => button.getAttribute("aria-label") === name) ?? buttons[0] ?? log.querySelector(".columns"))?.focus({ preventScroll: true });
}

function goOnWith(index) {
  const { who } = chat.turns[index];
  if (cards.has(who)) chat.model = model.value = who;
  turnBefore(chat, index).chosen = index;
  keepChat(chat, false);
  show(chat);
  byId("status").textContent = `You go on with the answer of ${who}.`;
}

// Asks the server to parse complete answers. If it does not, they stay as they were written.
async function renderAnswers(records) {
  const built = (record) => { if (places.has(record)) showMarkdown(places.get(record), record, parsedTexts.get(record)); };
  records.filter((record) => parsedTexts.has(record)).forEach(built);
  const others = records.filter((record) => record.text && !record.continued && !parsedTexts.has(record));
  for (let begin = 0; begin < others.length; begin += 20) {
    const some = others.slice(begin, begin + 20);
    try {
      const response = await posted("/markdown", { texts: some.map((record) => record.text) });
      if (!response.ok) throw new Error(await reason(response));
      const { parsed } = await response.json(), follow = isAtEnd();
      some.forEach((record, index) => { if (!parsedTexts.has(record)) { parsedTexts.set(record, parsed[index]); built(record); } });
      if (follow) toEnd();
    } catch (error) {
      byId("status").textContent = `The answer is shown as it was written: ${error.message}`;
      return;
    }
  }
}

function complain(message) {
  log.append(element("p", "error", message));
  byId("welcome").hidden = true;
  byId("status").textContent = message;
  toEnd();
}

function grow() {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight + 2}px`;
}

// Writes a message after what is shown, or, with `parent`, after another turn: a branch beside the turns that it has.
function submit(text, parent = shownLine(chat).at(-1) ?? -1) {
  if (!model.value) return;
  answer(chat, addedTurn(chat, { role: "user", text, parent }), asked());
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = input.value, last = chat?.turns[shownLine(chat).at(-1)];
  if (!cards.size) byId("hint").textContent = byId("status").textContent = "Your message stays here until the models are loaded.";
  if (running || !cards.size || !text.trim()) return;
  if (last?.role === "user") { byId("hint").textContent = byId("status").textContent = CHOOSE; return; }
  input.value = "";
  saveView();
  grow();
  submit(text);
});
input.addEventListener("input", () => { grow(); saveView(); });
input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !isComposing(event)) { event.preventDefault(); byId("form").requestSubmit(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
stopButton.addEventListener("click", () => running?.abort());
byId("new").addEventListener("click", () => show(freshChat(model.value)));
model.addEventListener("change", () => {
  if (!chat) return;
  chat.model = model.value;
  keepChat(chat, false);
  showMode();
});
const removed = (id) => {
  if (!chat || (id ?? chat.id) !== chat.id) return;
  chat.forgotten = true;
  show(freshChat(model.value));
};
byId("history-button").addEventListener("click", () => showHistory(removed));
byId("forget").addEventListener("click", () => { keepChats([]); removed(); showHistory(removed); });
byId("settings-button").addEventListener("click", (event) => {
  const open = byId("settings").hidden;
  byId("settings").hidden = !open;
  event.currentTarget.setAttribute("aria-expanded", String(open));
  if (open) byId(isChat() ? "system" : "temperature").focus();
});
// Another tab has changed the stored chats. What it has added to the chat that is shown here appears as soon as neither tab
// is writing an answer in it.
function noticeOtherTab() {
  if (!chat?.turns.length || chat.forgotten) return;
  const theirs = pastChats().find((one) => one.id === chat.id);
  if (!theirs) {
    chat.forgotten = true;
    byId("hint").textContent = byId("status").textContent = "This chat was deleted in another tab: it stays here until you leave it, and is not kept.";
    return;
  }
  if (theirs.save === chat.save || running) return;
  const known = new Set(chat.turns.filter(isOpen).map((turn) => turn.id));
  if (theirs.turns.some((turn) => isOpen(turn) && !known.has(turn.id))) {
    byId("hint").textContent = byId("status").textContent = "Another tab is writing in this chat. Its answer appears here when it is complete; what you send before that begins a branch.";
    return;
  }
  const { beside } = takeOver(chat, theirs);
  chat.save = theirs.save;
  takenOver.set(chat, beside);
  if (!log.querySelector("form.edit")) showTakenOver();
}

function showTakenOver() {
  const at = document.activeElement, place = isAtEnd() ? null : byId("scroll").scrollTop;
  show(chat, place);
  tellOfBranches(chat);
  if (at?.isConnected) at.focus({ preventScroll: true });
}

function tellOfBranches(where) {
  if (takenOver.get(where)) byId("hint").textContent = byId("status").textContent = "This chat went on in another tab too. Both are kept as versions: ‹ and › turn to the other one.";
  takenOver.delete(where);
}
window.addEventListener("storage", (event) => { if (event.key === HISTORY || event.key === null) noticeOtherTab(); });

// A link, the way back, or a bookmark.
window.addEventListener("hashchange", () => { if (chat && idInAddress() !== (chat.turns.length ? chat.id : "")) openAddress(); });
const leave = () => { saveView(); if (running && chat) keepChat(chat); };
window.addEventListener("pagehide", leave);
document.addEventListener("visibilitychange", leave);
loadModels();
