"use strict";
const model = byId("model"), input = byId("prompt"), send = byId("send"), stopButton = byId("stop");
const EXAMPLES = {
  true: ["What is the capital of Peru?", "How do I stop coughing?", "Tell me about France."],
  false: ["The capital of Peru is", "France is a country", "Once upon a time"],
};
const LOADING = "The models are being loaded, which takes up to a few minutes after the server has started.";
const RETRY_SECONDS = 3;
let cards = new Map();      // model name -> its entry in /v1/models
// The chat that is shown. Its turns are {role, text} and, of an answer, {who, continued, end, tokens, seconds, request,
// weights, system, first, good}: `first` is the index of the first turn that the model was sent.
let chat = null;
let running = null;         // the AbortController of the answer being written

const freshChat = () => ({ id: `${Date.now()}-${Math.random()}`, model: model.value, turns: [], first: 0 });
const isChat = () => cards.get(model.value)?.chat !== false;

function showMode() {
  const chats = isChat(), name = model.value;
  byId("welcome-title").textContent = chats ? "Ask something" : "Start a text";
  byId("welcome-text").textContent = chats
    ? `The model ${name} answers in conversation.`
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
  model.replaceChildren(...[...cards.keys()].map((name) => {
    const option = element("option", "", name);
    option.value = name;
    return option;
  }));
  const chatModels = [...cards.values()].filter((card) => card.chat !== false);
  // The last of the run's own models is that of the latest stage; adapters come after their models. A link may name one.
  const named = cards.get(new URLSearchParams(location.search).get("model") ?? "");
  const latest = named ?? chatModels.findLast((card) => !card.parent && card.id !== "visitor") ?? chatModels.at(-1);
  if (latest) model.value = latest.id;
  chat = freshChat();
  showMode();
}

function show(next) {
  running?.abort();
  chat = next;
  log.replaceChildren();
  byId("welcome").hidden = chat.turns.length > 0;
  const answers = [];
  chat.turns.forEach((record, index) => {
    if (record.role === "user") { addTurn("user", "You", record.text); return; }
    const place = addAnswer(record.who, record.continued);
    place.answer.data = record.text;
    finish(place, record, rating(chat, index));
    answers.push([place, record]);
  });
  renderAnswers(answers);
  showMode();
  input.focus();
}

// Asks the server to parse complete answers. If it does not, they stay as they were written.
async function renderAnswers(answers) {
  for (let begin = 0; begin < answers.length; begin += 20) {
    const some = answers.slice(begin, begin + 20);
    const body = JSON.stringify({ texts: some.map(([, record]) => record.text) });
    try {
      const response = await fetchWithKey("/markdown", { method: "POST", headers: { "Content-Type": "application/json" }, body });
      if (!response.ok) throw new Error(await reason(response));
      const { parsed } = await response.json(), follow = isAtEnd();
      some.forEach(([place, record], index) => showMarkdown(place, record, parsed[index]));
      if (follow) toEnd();
    } catch (error) {
      byId("status").textContent = `The answer is shown as it was written: ${error.message}`;
      return;
    }
  }
}

function openPast(past) {
  if (cards.has(past.model)) model.value = past.model;
  show({ ...past, model: model.value });
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

function number(id, low, high, fallback) {
  const value = Number(byId(id).value);
  return byId(id).value !== "" && Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : fallback;
}

function requestFor(name, messages) {
  const most = cards.get(name)?.max_model_len ?? 1e6;
  const common = {
    model: name, stream: true, stream_options: { include_usage: true },
    temperature: number("temperature", 0, 2, 0.7), max_tokens: Math.round(number("max-tokens", 1, most, 64)),
  };
  if (cards.get(name)?.chat === false) return ["/v1/completions", { ...common, prompt: messages.at(-1).content }];
  const first = system() ? [{ role: "system", content: system() }] : [];
  return ["/v1/chat/completions", { ...common, messages: [...first, ...messages] }];
}

async function reason(response) {
  try { return (await response.json()).error.message; } catch { return `the server answered ${response.status}`; }
}

// A small model has a small context: when the conversation no longer fits, its oldest exchanges are dropped for good.
async function ask(name, messages, signal) {
  for (let dropped = 0; ; dropped += 2) {
    const [path, body] = requestFor(name, messages.slice(dropped));
    const response = await fetchWithKey(path, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
    });
    if (response.ok) return { response, dropped };
    const message = await reason(response);
    const full = response.status === 400 && /context length/.test(message);
    if (!full) throw new Error(message);
    if (messages.length - dropped < 3) throw new Error(`This is longer than the ${cards.get(name)?.max_model_len ?? ""} tokens that ${name} can read.`);
  }
}

const message = ({ role, text }) => ({ role, content: text });
const system = () => byId("system").value.trim();

// Sends a thumb, with the conversation, to the run's feedback database.
function rating(where, index) {
  return async (good) => {
    const record = where.turns[index], sent = where.turns.slice(record.first, index).map(message);
    const messages = record.system ? [{ role: "system", content: record.system }, ...sent] : sent;
    const body = { request: record.request, model: record.model ?? record.who, weights: record.weights, messages, answer: record.text, good };
    try {
      const response = await fetchWithKey("/thumbs", {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
      });
      if (!response.ok) throw new Error(await reason(response));
    } catch (error) {
      complain(`Your rating was not stored: ${error.message}`);
      return false;
    }
    record.good = good;
    byId("status").textContent = good === null ? "Taken back." : "Stored, thank you.";
    if (chat === where) keepChat(where);
    return true;
  };
}

async function submit(text) {
  const name = model.value, chats = isChat(), started = performance.now(), control = new AbortController(), where = chat;
  if (!name) return;
  running = control;
  send.hidden = true; stopButton.hidden = false; model.disabled = true;
  byId("status").textContent = "The model is writing.";
  where.turns.push({ role: "user", text });
  const question = addTurn("user", "You", text).turn;
  const place = addAnswer(name, chats ? "" : text), { turn, answer } = place;
  turn.classList.add("busy");
  // A model that only continues text is sent no earlier turns.
  if (!chats) where.first = where.turns.length - 1;
  const record = { role: "assistant", text: "", who: name, continued: chats ? "" : text, end: "stop", tokens: 0, system: chats ? system() : "" };
  try {
    const { response, dropped } = await ask(name, where.turns.slice(where.first).map(message), control.signal);
    if (dropped) {
      where.first += dropped;
      turn.before(element("p", "note", `The oldest ${dropped} messages no longer fit: ${name} does not see them any more.`));
    }
    record.request = response.headers.get("x-request-id");
    record.weights = response.headers.get("x-triptych-weights") ?? "";
    record.model = response.headers.get("x-triptych-model") ?? record.who;
    for await (const event of streamedEvents(response)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0], follow = isAtEnd();
      answer.data += choice?.delta?.content ?? choice?.text ?? "";
      record.end = choice?.finish_reason ?? record.end;
      record.tokens = event.usage?.completion_tokens ?? record.tokens;
      if (follow) toEnd();
    }
  } catch (error) {
    record.end = error.name === "AbortError" ? "stopped" : "failed";
    if (record.end === "failed" && chat === where) complain(error.message);
  }
  Object.assign(record, { text: answer.data, first: where.first, seconds: (performance.now() - started) / 1000 });
  // A turn without an answer would leave two messages of the user in a row.
  if (record.text) where.turns.push(record); else where.turns.pop();
  if (record.text) keepChat(where);
  if (chat === where) {
    if (record.end !== "failed") byId("status").textContent = `${name}: ${record.text || "no text"}`;
    if (record.end === "failed" && !record.text) {
      turn.remove();
      // The text goes back into the input, where it can be edited.
      if (!input.value) { question.remove(); input.value = text; grow(); toEnd(); }
    } else {
      finish(place, record, rating(where, where.turns.length - 1));
      renderAnswers([[place, record]]);
      toEnd();
    }
  }
  if (running === control) {
    running = null;
    send.hidden = false; stopButton.hidden = true; model.disabled = false;
    input.focus();
  }
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = input.value;
  if (!chat) byId("hint").textContent = byId("status").textContent = "Your message stays here until the models are loaded.";
  if (running || !chat || !text.trim()) return;
  input.value = "";
  grow();
  submit(text);
});
input.addEventListener("input", grow);
input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !isComposing(event)) { event.preventDefault(); byId("form").requestSubmit(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
stopButton.addEventListener("click", () => running?.abort());
byId("new").addEventListener("click", () => show(freshChat()));
model.addEventListener("change", () => show(freshChat()));
byId("history-button").addEventListener("click", () => showHistory(openPast));
byId("forget").addEventListener("click", () => { keepChats([]); showHistory(openPast); });
byId("settings-button").addEventListener("click", (event) => {
  const open = byId("settings").hidden;
  byId("settings").hidden = !open;
  event.currentTarget.setAttribute("aria-expanded", String(open));
  if (open) byId(isChat() ? "system" : "temperature").focus();
});
loadModels();
