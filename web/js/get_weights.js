// The "Get weights" button of the CLEAR Attention node and its dialog.
// The button is never saved with a workflow: nobody's download may start on someone else's machine.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const NODE = "CLEARAttention";
const ROUTE = "/clear_flux/weights";
const EVENT = "clear_flux.weights";
const NO_SERVER = "ComfyUI does not answer. Check that it still runs, and try again.";
const STYLE = `
.clear-weights { background: var(--comfy-menu-bg, #fff); color: var(--fg-color, #111); max-width: 44rem;
  border: 1px solid var(--border-color, #888); border-radius: 8px; padding: 1.2rem; font: 14px/1.45 sans-serif; }
.clear-weights::backdrop { background: #0008; }
.clear-weights h2 { margin: 0 0 .3rem; font-size: 1.15rem; }
.clear-weights p { margin: .3rem 0; opacity: .85; overflow-wrap: anywhere; }
.clear-weights table { border-collapse: collapse; width: 100%; margin: .6rem 0; }
.clear-weights td { padding: .45rem .5rem .45rem 0; border-top: 1px solid var(--border-color, #888); vertical-align: top; }
.clear-weights td:first-child { white-space: nowrap; font-weight: 600; }
.clear-weights td:last-child { width: 8rem; text-align: right; }
.clear-weights .error { color: var(--error-text, #c33); opacity: 1; }
.clear-weights button { background: var(--comfy-input-bg, #eee); color: var(--input-text, #111); cursor: pointer;
  border: 1px solid var(--border-color, #888); border-radius: 6px; padding: .25rem .9rem; font: inherit; }
.clear-weights progress { width: 100%; }`;

function element(tag, text, parent) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

// The node that gets a download, by the download's name: it arrives there when the dialog is long closed, too.
const waiting = new Map();

const tell = (severity, detail) =>
  app.extensionManager?.toast?.add({ severity, summary: "CLEAR weights", detail, life: 10000 });

// Weights of a finished download go into the node, unless the user has chosen others meanwhile.
async function choose(node, file, stem) {
  const widget = node?.widgets?.find((w) => w.name === "weights_name");
  const bare = String(widget?.value ?? "").split(/[\\/]/).pop();
  if (widget && (bare === "none" || bare === `${stem}.safetensors`)) {
    widget.value = file;
    widget.callback?.(file);
    node.setDirtyCanvas?.(true, true);
  }
}

async function onNews({ detail }) {
  if (!detail.error && !detail.installed) return;
  const node = waiting.get(detail.name);
  waiting.delete(detail.name);
  if (!document.querySelector("dialog.clear-weights"))
    detail.error ? tell("error", detail.error) : tell("success", `${detail.name} is installed.`);
  if (!detail.installed) return;
  await app.refreshComboInNodes?.();
  await choose(node, detail.installed, detail.name);
}

function showRow(table, file, node) {
  const row = element("tr", null, table);
  element("td", file.name, row);
  element("td", `${file.meant_for} (${(file.size / 1e9).toFixed(1)} GB)`, row);
  const cell = element("td", null, row);
  const state = {
    bar(done, total) {
      cell.replaceChildren();
      const bar = element("progress", null, cell);
      if (total) { bar.max = total; bar.value = done; }
    },
    installed() { cell.replaceChildren("installed"); },
    offer(message) {
      cell.replaceChildren();
      element("button", message ? "Try again" : "Get", cell).onclick = async () => {
        row.querySelector(".error")?.remove();
        state.bar();
        waiting.set(file.name, node);
        try {
          const answer = await api.fetchApi(ROUTE, {
            method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ name: file.name }),
          });
          if (answer.ok) return;
          state.offer((await answer.json()).error);
        } catch {
          state.offer(NO_SERVER);
        }
        waiting.delete(file.name);
      };
      if (message) element("p", message, row.children[1]).className = "error";
    },
  };
  if (file.fetching && !waiting.has(file.name)) waiting.set(file.name, node);
  if (file.installed) state.installed();
  else if (file.fetching) state.bar();
  else state.offer();
  return ({ detail }) => {
    if (detail.name !== file.name) return;
    if (detail.error) state.offer(detail.error);
    else if (detail.installed) state.installed();
    else state.bar(detail.done, detail.total);
  };
}

async function openDialog(node) {
  let offer;
  try {
    offer = await (await api.fetchApi(ROUTE)).json();
  } catch {
    tell("error", NO_SERVER);
    return;
  }
  const { files, folder, licence } = offer;
  const dialog = element("dialog", null, document.body);
  dialog.className = "clear-weights";
  element("style", STYLE, dialog);
  element("h2", "CLEAR weights", dialog);
  element("p", `Downloaded from Hugging Face into ${folder}. A download continues after this is closed.`, dialog);
  const table = element("table", null, dialog);
  const listeners = files.map((file) => showRow(table, file, node));
  for (const listener of listeners) api.addEventListener(EVENT, listener);
  element("p", licence, dialog);
  element("button", "Close", dialog).onclick = () => dialog.close();
  dialog.onclose = () => {
    for (const listener of listeners) api.removeEventListener(EVENT, listener);
    dialog.remove();
  };
  dialog.showModal();
}

app.registerExtension({
  name: "clear-flux.get-weights",
  setup() { api.addEventListener(EVENT, onNews); },
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const button = node.addWidget("button", "Get weights", null, () => openDialog(node), { serialize: false });
    button.serialize = false;
  },
});
