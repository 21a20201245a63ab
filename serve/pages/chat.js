"use strict";
const model = byId("model"), log = byId("log"), input = byId("prompt"), send = byId("send"), stopButton = byId("stop");
const EXAMPLES = {
  true: ["What is the capital of Peru?", "How do I stop coughing?", "Tell me about France."],
  false: ["The capital of Peru is", "France is a country", "Once upon a time"],
};
let cards = new Map();      // model name -> its entry in /v1/models
let conversation = [];           // finished and running turns: {role, content}
let running = null;         // the AbortController of the answer being written

const isChat = () => cards.get(model.value)?.chat !== false;

function showMode() {
  const chat = isChat(), name = model.value;
  byId("welcome-title").textContent = chat ? "Ask something" : "Start a text";
  byId("welcome-text").textContent = chat
    ? `The model ${name} answers in conversation.`
    : `The model ${name} has only learned to predict the next word. It continues your text; it does not answer questions.`;
  byId("prompt-label").textContent = chat ? "Message" : "Text to continue";
  input.placeholder = chat ? "Message" : "Text to continue";
  send.textContent = chat ? "Send" : "Continue";
  byId("hint").textContent = chat
    ? "Enter sends, Shift+Enter starts a new line, Esc stops."
    : `${name} continues text, each time from your text alone. Enter sends, Esc stops.`;
  byId("system").disabled = !chat;
  byId("examples").replaceChildren(...EXAMPLES[chat].map((text) => {
    const button = element("button", "", text);
    button.type = "button";
    button.addEventListener("click", () => { if (!running) submit(text); });
    return button;
  }));
}

async function loadModels() {
  try {
    const response = await fetchWithKey("/v1/models");
    if (!response.ok) throw new Error(await reason(response));
    const list = (await response.json()).data.filter((card) => !card.score);
    cards = new Map(list.map((card) => [card.id, card]));
  } catch (error) {
    complain(`The list of models could not be loaded: ${error.message}`);
    return;
  }
  model.replaceChildren(...[...cards.keys()].map((name) => {
    const option = element("option", "", name);
    option.value = name;
    return option;
  }));
  const chatModels = [...cards.values()].filter((card) => card.chat !== false);
  if (chatModels.length) model.value = chatModels.at(-1).id;
  showMode();
}

function newChat() {
  running?.abort();
  conversation = [];
  log.replaceChildren();
  byId("welcome").hidden = false;
  showMode();
  input.focus();
}

function complain(message) {
  log.append(element("p", "error", message));
  byId("welcome").hidden = true;
  byId("status").textContent = message;
  toEnd();
}

function toEnd() { byId("scroll").scrollTop = byId("scroll").scrollHeight; }

const isAtEnd = () => byId("scroll").scrollHeight - byId("scroll").scrollTop - byId("scroll").clientHeight < 60;

function addTurn(role, who, text) {
  const turn = element("div", `turn ${role}`);
  const body = element("p", "text", text);
  turn.append(element("span", "who", who), body);
  log.append(turn);
  byId("welcome").hidden = true;
  toEnd();
  return { turn, body };
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
  const system = byId("system").value.trim();
  return ["/v1/chat/completions", { ...common, messages: system ? [{ role: "system", content: system }, ...messages] : messages }];
}

async function reason(response) {
  try { return (await response.json()).error.message; } catch { return `the server answered ${response.status}`; }
}

// A small model remembers little: when the conversation no longer fits, its oldest exchange is left out for good.
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

function finish(turn, body, text, end, tokens, seconds) {
  turn.classList.remove("busy");
  const foot = element("div", "foot");
  const copy = element("button", "", "Copy");
  copy.type = "button";
  copy.setAttribute("aria-label", "Copy this answer");
  copy.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(text); copy.textContent = "Copied"; }
    catch { getSelection().selectAllChildren(body); copy.textContent = "Press Ctrl+C"; }
    setTimeout(() => { copy.textContent = "Copy"; }, 1600);
  });
  const why = { length: "cut at max tokens", stopped: "stopped", failed: "broken off" }[end];
  const facts = [why, tokens ? `${tokens} token${tokens === 1 ? "" : "s"} in ${seconds.toFixed(1)} s` : ""];
  foot.append(copy, element("span", "", facts.filter(Boolean).join(" · ")));
  turn.append(foot);
}

async function submit(text) {
  const name = model.value, chat = isChat(), started = performance.now(), control = new AbortController();
  if (!name) return;
  running = control;
  send.hidden = true; stopButton.hidden = false; model.disabled = true;
  byId("status").textContent = "The model is writing.";
  const asked = { role: "user", content: text };
  const thread = conversation;
  thread.push(asked);
  const question = addTurn("user", "You", text).turn;
  const { turn, body } = addTurn("assistant busy", name, "");
  if (!chat) body.append(element("span", "prompt", text));
  const answer = document.createTextNode("");
  body.append(answer);
  let end = "stop", tokens = 0;
  try {
    const { response, dropped } = await ask(name, chat ? thread : [asked], control.signal);
    if (dropped) {
      thread.splice(0, dropped);
      turn.before(element("p", "note", `The oldest ${dropped} messages no longer fit: ${name} does not see them any more.`));
    }
    for await (const event of streamedEvents(response)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0], follow = isAtEnd();
      answer.data += choice?.delta?.content ?? choice?.text ?? "";
      end = choice?.finish_reason ?? end;
      tokens = event.usage?.completion_tokens ?? tokens;
      if (follow) toEnd();
    }
  } catch (error) {
    end = error.name === "AbortError" ? "stopped" : "failed";
    if (end === "failed" && conversation === thread) complain(error.message);
  }
  if (conversation === thread) {
    byId("status").textContent = end === "failed" ? byId("status").textContent : `${name}: ${answer.data || "no text"}`;
    // A turn without an answer would leave two messages of one side in a row.
    if (chat && answer.data) thread.push({ role: "assistant", content: answer.data }); else thread.pop();
    if (end === "failed" && !answer.data) {
      turn.remove();
      // The words go back to where they can be mended.
      if (!input.value) { question.remove(); input.value = text; grow(); toEnd(); }
    } else {
      finish(turn, body, chat ? answer.data : text + answer.data, end, tokens, (performance.now() - started) / 1000);
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
  if (running || !text.trim()) return;
  input.value = "";
  grow();
  submit(text);
});
input.addEventListener("input", grow);
input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); byId("form").requestSubmit(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
stopButton.addEventListener("click", () => running?.abort());
byId("new").addEventListener("click", newChat);
model.addEventListener("change", newChat);
byId("settings-button").addEventListener("click", (event) => {
  const open = byId("settings").hidden;
  byId("settings").hidden = !open;
  event.currentTarget.setAttribute("aria-expanded", String(open));
  if (open) byId(isChat() ? "system" : "temperature").focus();
});
loadModels();
