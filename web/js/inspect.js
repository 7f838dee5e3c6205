// The report of CLEAR Inspect on its node, under the page: a text to read and to copy. It is never saved with a
// workflow, and comes back with the run's result.
import { app } from "../../../scripts/app.js";

const NODE = "CLEARInspect";
const WIDGET = "report";
const SMALLEST = 120;
const TALLEST = 240;  // the page below it gets the rest of the node
const SIZE = [640, 1010];
const BOX = `box-sizing: border-box; display: flex; flex-direction: column; gap: 4px; width: 100%; height: 100%;
  min-height: ${SMALLEST}px;`;
const TEXT = `flex: 1; width: 100%; min-height: 0; resize: none; box-sizing: border-box; padding: 6px 8px;
  border: 0; border-radius: 6px; font: 12px/1.45 sans-serif; color: var(--input-text, #ddd);
  background: var(--comfy-input-bg, #222);`;
const BUTTON = `align-self: flex-end; cursor: pointer; border: 1px solid var(--border-color, #888); border-radius: 6px;
  padding: 2px 10px; font: 12px sans-serif; color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222);`;

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text.value);
    button.textContent = "Copied";
  } catch {
    // Pages that are not served over HTTPS have no clipboard: leave the text selected for the keyboard.
    text.select();
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

function addReport(node) {
  const box = document.createElement("div");
  box.style.cssText = BOX;
  const text = document.createElement("textarea");
  text.readOnly = true;
  text.spellcheck = false;
  text.placeholder = "Run this node to see what the window does here.";
  text.style.cssText = TEXT;
  const button = document.createElement("button");
  button.textContent = "Copy";
  button.style.cssText = BUTTON;
  button.onclick = () => copy(text, button);
  // The graph's own shortcuts and zoom would take keys and wheel away from a text that can be scrolled.
  for (const event of ["keydown", "wheel", "pointerdown"])
    text.addEventListener(event, (happened) => happened.stopPropagation());
  box.append(text, button);
  const widget = node.addDOMWidget(WIDGET, "clear_report", box, {
    serialize: false, hideOnZoom: false, getMinHeight: () => SMALLEST, getMaxHeight: () => TALLEST,
    getValue: () => text.value,
    setValue: () => {},  // A saved graph has nothing to put here.
  });
  widget.serialize = false;
  return text;
}

app.registerExtension({
  name: "clear-flux.inspect",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const text = addReport(node);
    node.setSize?.([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], SIZE[1])]);
    const onExecuted = node.onExecuted;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      if (output?.text) text.value = [output.text].flat().join("");
    };
  },
});
