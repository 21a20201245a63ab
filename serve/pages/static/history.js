"use strict";
// Past chats, stored in this browser and sent nowhere. Beyond MAX_CHATS, or when the storage is full, the oldest are
// dropped. Beside them, for each chat, the message that is being written and the place that is read.
const MAX_CHATS = 50, HISTORY = "triptych chats", VIEWS = "triptych views", NEW_DRAFT = "triptych draft";

function stored(name, otherwise) {
  try { return JSON.parse(localStorage.getItem(name)) ?? otherwise; } catch { return otherwise; }
}

const pastChats = () => stored(HISTORY, []);

function keepChats(chats) {
  for (let kept = chats.slice(0, MAX_CHATS); ; kept = kept.slice(0, -1)) {
    try { localStorage.setItem(HISTORY, JSON.stringify(kept)); break; } catch { if (!kept.length) break; }
  }
  keepViews(stored(VIEWS, {}));
}

// Chats that have turns of another tab which are not shown yet -> whether any of these stands beside one of this tab's.
const takenOver = new WeakMap();

// Stores a chat, as the newest one if something was written in it. One that was deleted stays so.
//
// What another tab has written to the same chat meanwhile is taken over first: no tab overwrites what another one wrote.
function keepChat(chat, written = true) {
  if (chat.forgotten) return;
  const chats = pastChats(), place = chats.findIndex((one) => one.id === chat.id);
  if (place >= 0 && chats[place].save !== chat.save) {
    const { added, beside } = takeOver(chat, chats[place]);
    if (added) takenOver.set(chat, beside || (takenOver.get(chat) ?? false));
  }
  if (written || place >= 0) chat.save = newId();
  if (written) keepChats([{ ...chat, time: Date.now() }, ...chats.filter((one) => one.id !== chat.id)]);
  else if (place >= 0) keepChats(chats.with(place, { ...chat, time: chats[place].time }));
}

// Stores the thumb of one turn; a chat that was deleted meanwhile stays deleted.
const keepThumb = (id, turnId, good) => keepChats(pastChats().map(restoredChat).map((chat) =>
  (chat.id === id ? { ...chat, save: newId(), turns: chat.turns.map((turn) => (turn.id === turnId ? { ...turn, good } : turn)) } : chat)));

const forgetChat = (id) => keepChats(pastChats().filter((one) => one.id !== id));

// The view of a chat is {draft, scroll}: the unsent message, and the position in pixels, null at the end.
function keepViews(views) {
  const ids = new Set(pastChats().map((one) => one.id));
  const kept = Object.entries(views).filter(([id, view]) => ids.has(id) && (view.draft || view.scroll !== null));
  try { localStorage.setItem(VIEWS, JSON.stringify(Object.fromEntries(kept))); } catch { /* The chats themselves fill the storage. */ }
}

// The draft of a chat without turns belongs to the tab.
function keepView(chat, view) {
  if (chat.turns.length) keepViews({ ...stored(VIEWS, {}), [chat.id]: view });
  else sessionStorage.setItem(NEW_DRAFT, view.draft);
}

const viewOf = (chat) => (chat.turns.length ? stored(VIEWS, {})[chat.id] : { draft: sessionStorage.getItem(NEW_DRAFT), scroll: null }) ?? { draft: "", scroll: null };

// The id in this page's address, "" for a new chat; and a past chat's address.
const idInAddress = () => { try { return decodeURIComponent(/^#\/chat\/(.+)$/.exec(location.hash)?.[1] ?? ""); } catch { return ""; } };
const addressOf = (chat) => `${location.pathname}${location.search}${chat.turns.length ? `#/chat/${encodeURIComponent(chat.id)}` : ""}`;

// Lists the past chats. `removed` is called with the ids that are deleted, undefined for all.
function showHistory(removed) {
  const chats = pastChats();
  byId("history-text").textContent = chats.length ? `Kept in this browser only, the newest ${MAX_CHATS} of them.` : "There is none yet. This browser will keep your chats, and only this browser.";
  byId("forget").hidden = !chats.length;
  byId("past").replaceChildren(...chats.map((chat) => {
    const item = element("li"), title = element("button", "past"), remove = element("button", "", "Delete"), text = chat.turns[0].text;
    title.type = remove.type = "button";
    const name = Object.assign(element("span", "title", text), { dir: "auto" });
    title.append(name, element("span", "quiet", `${chat.model === ALL ? "all models" : chat.model}, ${new Date(chat.time).toLocaleString([], { dateStyle: "short", timeStyle: "short" })}`));
    remove.setAttribute("aria-label", `Delete ${text}`);
    title.addEventListener("click", () => { byId("history").close(); goTo(chat); });
    remove.addEventListener("click", () => { forgetChat(chat.id); removed(chat.id); showHistory(removed); byId("history-close").focus(); });
    item.append(title, remove);
    return item;
  }));
  if (!byId("history").open) byId("history").showModal();
}

byId("history-close").addEventListener("click", () => byId("history").close());
