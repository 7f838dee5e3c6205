// The widgets of CLEAR Attention in their order. Written by `python3 dev.py sync` from nodes/attention.py.
export const SETTINGS = [
  "weights_name",
  "strength",
  "radius",
  "ntk_factor",
  "proportional_attention",
  "start_percent",
  "end_percent",
  "dense_blocks",
  "min_tokens",
  "controlnet",
  "backend",
  "down_factor",
  "ntk",
];
