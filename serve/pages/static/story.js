"use strict";
// The first two steps of the story: next-word probabilities and answers of the run's models, and the tokens that
// fine-tuning learned from.
const MODELS = { base: "Base", sft: "Fine-tuned", policy: "Policy, after people ranked" };
const CHANCES = 5, ANSWER_TOKENS = 48;
let story = null;          // what does not change: sentences, questions, tasks, conversations
let cards = new Map();      // the served models' entries of /v1/models, by name
let shownConversation = 0;
const asked = new Map();    // the number of times that each place of model cards was asked for

function complain(text) { byId("trouble").textContent = text; byId("trouble").hidden = !text; }

async function getJson(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetchWithKey(path, { again: path.startsWith("/story/state"), ...options });
  const found = await response.json().catch(() => ({}));
  if (response.ok) return found;
  throw new Error(found.error?.message ?? (typeof found.detail === "string" ? found.detail : `the server answered ${response.status}`));
}

// What a model writes after a sentence, greedily, and its most probable first tokens as [text, probability].
async function write(model, sentence) {
  const common = { model, temperature: 0, max_tokens: ANSWER_TOKENS };
  const chance = (logprob) => Math.exp(logprob);
  if (cards.get(model)?.chat === false) {
    const choice = (await getJson("/v1/completions", { ...common, prompt: sentence, logprobs: CHANCES })).choices[0];
    return { text: choice.text, chances: Object.entries(choice.logprobs.top_logprobs[0]).map(([token, value]) => [token, chance(value)]), continues: true };
  }
  const messages = [{ role: "user", content: sentence }];
  const choice = (await getJson("/v1/chat/completions", { ...common, messages, logprobs: true, top_logprobs: CHANCES })).choices[0];
  const first = choice.logprobs?.content?.[0]?.top_logprobs ?? [];
  return { text: choice.message.content ?? "", chances: first.map((one) => [one.token, chance(one.logprob)]), continues: false };
}

function modelCard(name, sentence, found, withChances) {
  const node = element("article", "model"), title = element("h4", "", MODELS[name] ?? name);
  title.append(element("span", "quiet", found.continues ? " continues" : " answers"));
  node.append(title);
  if (withChances) {
    const list = element("ol", "chances");
    list.setAttribute("aria-label", "The most probable next tokens");
    list.append(...found.chances.sort((one, other) => other[1] - one[1]).slice(0, CHANCES).map(([token, chance]) => {
      const row = element("li"), bar = element("meter");
      Object.assign(bar, { min: 0, max: 1, value: chance });
      bar.setAttribute("aria-label", `probability of ${token}`);
      row.append(element("code", "", token.replaceAll("\n", "⏎").replaceAll(" ", "␣")), bar, element("span", "", `${(100 * chance).toFixed(chance < 0.1 ? 1 : 0)} %`));
      return row;
    }));
    node.append(list);
  }
  const written = Object.assign(element("p", "written"), { dir: "auto" });
  if (found.continues) written.append(element("span", "given", sentence));
  written.append(found.text || "(nothing)");
  node.append(written);
  return node;
}

// Asks each model and shows the cards, unless something else has been asked for in their place meanwhile.
async function showModels(place, names, sentence, withChances) {
  const mine = (asked.get(place) ?? 0) + 1, isNewest = () => asked.get(place) === mine;
  asked.set(place, mine);
  place.setAttribute("aria-busy", "true");
  try {
    const served = names.filter((name) => cards.has(name));
    const found = await Promise.all(served.map((name) => write(name, sentence)));
    if (!isNewest()) return;
    place.replaceChildren(...served.map((name, index) => modelCard(name, sentence, found[index], withChances)));
    complain("");
  } catch (error) {
    if (isNewest()) complain(`The models could not be asked: ${error.message}`);
  } finally { if (isNewest()) place.removeAttribute("aria-busy"); }
}

function choices(place, texts, choose) {
  place.replaceChildren(...texts.map((text) => {
    const button = Object.assign(element("button", "", text), { type: "button", dir: "auto" });
    button.addEventListener("click", () => {
      for (const other of place.children) other.setAttribute("aria-pressed", String(other === button));
      choose(text);
    });
    return button;
  }));
}

function showConversation() {
  const tokens = story.conversations[shownConversation % story.conversations.length];
  byId("conversation").replaceChildren(...tokens.map(([text, trained]) => {
    const token = element("b", trained ? "trained" : "", text.replaceAll("\n", "⏎\n"));
    token.title = trained ? "the loss counts this token" : "only read";
    return token;
  }));
}

function trySentence(sentence) {
  byId("sentence").value = sentence;
  showModels(byId("models"), Object.keys(MODELS), sentence, true);
}

async function begin() {
  try {
    const [data, models] = await Promise.all([getJson("/story/data"), getJson("/v1/models")]);
    story = data;
    cards = new Map(models.data.map((card) => [card.id, card]));
  } catch (error) {
    complain(`The page could not be filled: ${error.message}`);
    byId("models").removeAttribute("aria-busy");
    return;
  } finally { byId("conversation").removeAttribute("aria-busy"); }
  choices(byId("sentences"), story.sentences, trySentence);
  choices(byId("held-out"), story.held_out, (question) => showModels(byId("held-out-answers"), ["base", "sft"], question, false));
  byId("held-out-part").hidden = story.held_out.length === 0;
  if (story.conversations.length) showConversation();
  beginRanking();
  byId("sentences").firstElementChild.click();
}

byId("try").addEventListener("submit", (event) => {
  event.preventDefault();
  const sentence = byId("sentence").value.trim();
  if (sentence && story) trySentence(sentence);
});
byId("another").addEventListener("click", () => { if (story) { shownConversation += 1; showConversation(); } });
