"use strict";
// Past chats, stored in this browser and sent nowhere. Beyond MAX_CHATS, or when the storage is full, the oldest are
// dropped.
const MAX_CHATS = 50, HISTORY = "triptych chats";

function pastChats() {
  try { return JSON.parse(localStorage.getItem(HISTORY)) ?? []; } catch { return []; }
}

function keepChats(chats) {
  for (let kept = chats.slice(0, MAX_CHATS); ; kept = kept.slice(0, -1)) {
    try { localStorage.setItem(HISTORY, JSON.stringify(kept)); return; } catch { if (!kept.length) return; }
  }
}

// A chat is {id, model, turns, first, time}; turns and first are as in chat.js.
const keepChat = (chat) => keepChats([{ ...chat, time: Date.now() }, ...pastChats().filter((one) => one.id !== chat.id)]);
const forgetChat = (id) => keepChats(pastChats().filter((one) => one.id !== id));

function showHistory(open) {
  const chats = pastChats();
  byId("history-text").textContent = chats.length ? "Kept in this browser only." : "There is none yet. This browser will keep your chats, and only this browser.";
  byId("forget").hidden = !chats.length;
  byId("past").replaceChildren(...chats.map((chat) => {
    const item = element("li"), title = element("button", "past"), remove = element("button", "", "Delete"), text = chat.turns[0].text;
    title.type = remove.type = "button";
    title.append(element("span", "title", text), element("span", "quiet", `${chat.model}, ${new Date(chat.time).toLocaleString([], { dateStyle: "short", timeStyle: "short" })}`));
    remove.setAttribute("aria-label", `Delete ${text}`);
    title.addEventListener("click", () => { byId("history").close(); open(chat); });
    remove.addEventListener("click", () => { forgetChat(chat.id); showHistory(open); byId("history-close").focus(); });
    item.append(title, remove);
    return item;
  }));
  if (!byId("history").open) byId("history").showModal();
}

byId("history-close").addEventListener("click", () => byId("history").close());
