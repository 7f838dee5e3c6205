// Which node feeds an input and which inputs an output feeds, as the run will see it: through reroutes, bypassed nodes
// and the borders of subgraphs; a muted node feeds nothing.
//
// Only this file reads links. Newer front ends warn of scripts that read `input.link` or `output.links`; the calls below
// are in every front end of the supported hosts.
const MUTED = 2;
const BYPASSED = 4;
const SUBGRAPH_INPUTS = -10;
const SUBGRAPH_OUTPUTS = -20;

export const isOff = (node) => node.mode === MUTED || node.mode === BYPASSED;

const passesOn = (node) => node.mode === BYPASSED || node.type === "Reroute";
const fits = (one, other) => one === other || one === "*" || other === "*";

// The link into the input at this index, or undefined. A node that holds a subgraph has its own `getInputLink`, which
// follows an output inwards, so every node is asked by the call that they all inherit.
function linkInto(node, index) {
  if (!node.graph || !node.inputs?.[index]) return undefined;
  return LiteGraph.LGraphNode.prototype.getInputLink.call(node, index) ?? undefined;
}

// The links out of the output at this index. The front end offers the nodes at their ends, but these leave out the
// border of a subgraph and the input that a link goes to.
function linksOutOf(node, index) {
  const links = [...(node.graph?.links?.values() ?? [])];
  return links.filter((link) => String(link.origin_id) === String(node.id) && link.origin_slot === index);
}

export const isLinked = (node, index) => linkInto(node, index) !== undefined;

// All graphs of the open workflow, subgraphs included.
export function allGraphs(root) {
  return [root, ...(root?.subgraphs?.values() ?? [])].filter(Boolean);
}

// The node that stands for a subgraph in the graph around it; the first where there are several.
function hostOf(graph) {
  for (const outer of allGraphs(graph.rootGraph ?? graph)) {
    const host = outer.nodes?.find((node) => node.subgraph === graph);
    if (host) return host;
  }
  return undefined;
}

// Which input a bypassed node hands on through this output, or the other way round: the same place, else the first
// of the type.
function counterpart(slots, index, type) {
  if (slots?.[index] && fits(slots[index].type, type)) return index;
  return slots?.findIndex((slot) => fits(slot.type, type)) ?? -1;
}

function origin(graph, link) {
  if (!link) return undefined;
  if (Number(link.origin_id) === SUBGRAPH_INPUTS) {
    const host = hostOf(graph);
    return host && source(host, link.origin_slot);
  }
  const node = graph.getNodeById(link.origin_id);
  if (!node || node.mode === MUTED) return undefined;
  if (passesOn(node)) return source(node, counterpart(node.inputs, link.origin_slot, node.outputs[link.origin_slot]?.type));
  if (node.subgraph) {
    const inner = node.subgraph.outputs?.[link.origin_slot]?.linkIds?.[0];
    return origin(node.subgraph, node.subgraph.getLink(inner));
  }
  return node;
}

// The node that feeds the input at this index, or undefined.
export function source(node, index) {
  return origin(node.graph, linkInto(node, index));
}

// The node that feeds the first connected input of a type.
export function sourceOfType(node, ...types) {
  const index = node.inputs?.findIndex((input, at) => types.includes(input.type) && isLinked(node, at)) ?? -1;
  return index < 0 ? undefined : source(node, index);
}

function* arrivals(graph, link) {
  if (!link) return;
  if (Number(link.target_id) === SUBGRAPH_OUTPUTS) {
    const host = hostOf(graph);
    if (host) yield* targets(host, link.target_slot);
    return;
  }
  const node = graph.getNodeById(link.target_id);
  if (!node || node.mode === MUTED) return;
  if (passesOn(node)) {
    const index = counterpart(node.outputs, link.target_slot, node.inputs[link.target_slot]?.type);
    if (index >= 0) yield* targets(node, index);
  } else if (node.subgraph) {
    for (const inner of node.subgraph.inputs?.[link.target_slot]?.linkIds ?? [])
      yield* arrivals(node.subgraph, node.subgraph.getLink(inner));
  } else {
    yield node;
  }
}

// The nodes that the output at this index feeds.
export function* targets(node, index) {
  for (const link of linksOutOf(node, index)) yield* arrivals(node.graph, link);
}

const widgetValue = (node, name) => node?.widgets?.find((widget) => widget.name === name)?.value;

// What a widget will send: its own value, that of the primitive that feeds it, or that of the widget by which a subgraph
// shows it outside; undefined where only a run can tell.
export function valueOf(node, name) {
  const index = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  const link = linkInto(node, index);
  if (!link) return widgetValue(node, name);
  if (Number(link.origin_id) !== SUBGRAPH_INPUTS) return widgetValue(source(node, index), "value");
  const host = hostOf(node.graph);
  return host && valueOf(host, host.inputs[link.origin_slot]?.name);
}
