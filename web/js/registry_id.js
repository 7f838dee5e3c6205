// Nodes of this pack say where they come from, as nodes placed with the Manager do: whoever opens a shared workflow
// without the pack is then offered it.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

// The server names a node's module after the pack's folder, which is the user's choice; our own address holds it too.
const folder = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-3));
const ours = new Set();
let pack;

app.registerExtension({
  name: "clear-flux.registry-id",
  async init() {
    try {
      const found = await (await api.fetchApi("/clear_flux/pack")).json();
      if (found.name !== "unknown") pack = found;  // as it is in a copy without pyproject.toml
    } catch {
      pack = undefined;  // the nodes work without
    }
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.python_module === `custom_nodes.${folder}`) ours.add(nodeData.name);
  },
  nodeCreated(node) {
    if (!pack || !ours.has(node.comfyClass)) return;
    node.properties.cnr_id ??= pack.name;
    node.properties.ver ??= pack.version;
  },
});
