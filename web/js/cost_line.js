// The line of figures on CLEAR Attention and CLEAR Upscale: tokens, share of dense attention, and where windows will
// not pay. It is a note to the reader: never saved with a workflow, never sent to the server.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { enlargedSize, lookAgain, sampledSize } from "./frame_size.js";
import { allGraphs, isLinked, isOff, sourceOfType, valueOf } from "./graph.js";
import { SETTINGS } from "./settings.js";
import "./get_weights.js";  // so that its button is above the line in every front end

const ATTENTION = "CLEARAttention";
const UPSCALE = "CLEARUpscale";
const ROUTE = "/clear_flux/cost";
const HEIGHT = 46;
const STYLE = `box-sizing: border-box; max-height: ${HEIGHT - 8}px; overflow: hidden; padding: 3px 8px; border-radius: 6px;
  font: 11px/1.35 sans-serif; color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222);`;

// No event tells of every change that matters (a picture that was loaded, a value set by another pack, a mode), so the
// graph is read anew at this pace; the server is asked only when the question changed.
const MILLISECONDS = 400;
const AGAIN = 5000;  // milliseconds until a question that no server answered is asked again

const lines = new WeakMap();  // node: its element
let answers = new Map();  // question: its answer, or a promise of it

const UNSEEN = "the model's source is only known when it runs";

const takesModel = (input) => input.type === "MODEL";

// A node at which models begin: it is fed with nothing but values of its widgets, and is no alias of another node.
const isLoader = (node) => !node.isVirtualNode && !node.inputs?.some((input, at) => !input.widget && isLinked(node, at));

// The nearest CLEAR Attention before a node: null where there is none, a text where that cannot be told. Only a run can
// follow a switch, a merge, or an alias that another pack resolves by its own means.
function attentionBefore(node) {
  for (let at = node, step = 0; step < 100; step++) {
    if (!at.inputs?.some(takesModel)) return isLoader(at) ? null : UNSEEN;
    if (at.inputs.filter((input, index) => takesModel(input) && isLinked(at, index)).length > 1) return UNSEEN;
    at = sourceOfType(at, "MODEL");
    if (!at) return "connect a model";
    if (at.comfyClass === ATTENTION) return at;
  }
  return UNSEEN;
}

// What to ask the server about a node; a text where there is nothing to ask.
function question(node) {
  if (isOff(node)) return { text: "off" };
  const attention = node.comfyClass === ATTENTION ? node : attentionBefore(node);
  const size = node.comfyClass === ATTENTION ? sampledSize(node) : enlargedSize(node);
  const asked = new URLSearchParams();
  if (size) {
    asked.set("width", size[0]);
    asked.set("height", size[1]);
  }
  if (typeof attention === "string") return { text: attention };
  if (attention === null) asked.set("windows", "off");
  for (const name of attention ? SETTINGS : []) {
    const value = valueOf(attention, name);
    if (value === undefined) return { text: `${name} is only known when it runs` };
    asked.set(name, value);
  }
  return { ask: asked.toString() };
}

async function fetchAnswer(ask, answers) {
  try {
    const answer = await (await api.fetchApi(`${ROUTE}?${ask}`)).json();
    answers.set(ask, String(answer.line ?? answer.error ?? ""));
  } catch {
    answers.set(ask, "");
    setTimeout(() => answers.delete(ask), AGAIN);
  }
}

// What lies in the folders may be other files than before. Answers that are on their way are to the old question.
function askAnew() {
  answers = new Map();
  lookAgain();
}

function show(element, node) {
  const { text, ask } = question(node);
  if (ask !== undefined && !answers.has(ask)) answers.set(ask, fetchAnswer(ask, answers));
  const line = text ?? answers.get(ask);
  if (typeof line === "string" && element.textContent !== line) element.textContent = element.title = line;
}

function refresh() {
  for (const graph of allGraphs(app.rootGraph)) {
    for (const node of graph.nodes ?? []) {
      const element = lines.get(node);
      if (!element) continue;
      try {
        show(element, node);
      } catch {
        element.textContent = element.title = "";  // a graph in the middle of a change: the next round reads it again
      }
    }
  }
}

app.registerExtension({
  name: "clear-flux.cost-line",
  setup() {
    api.addEventListener("reconnected", askAnew);
    api.addEventListener("clear_flux.weights", ({ detail }) => detail.installed && askAnew());
    setInterval(refresh, MILLISECONDS);
  },
  refreshComboInNodes: askAnew,
  nodeCreated(node) {
    if (node.comfyClass !== ATTENTION && node.comfyClass !== UPSCALE) return;
    const element = document.createElement("div");
    element.className = "clear-cost";
    element.style.cssText = STYLE;
    const widget = node.addDOMWidget("cost", "clear_cost", element, {
      serialize: false, margin: 4, getMinHeight: () => HEIGHT, getMaxHeight: () => HEIGHT,
    });
    widget.serialize = false;
    lines.set(node, element);
    // A node made by a program gets its size before its widgets from here.
    const [width, height] = node.computeSize();
    node.setSize([Math.max(width, node.size[0]), Math.max(height, node.size[1])]);
  },
});
