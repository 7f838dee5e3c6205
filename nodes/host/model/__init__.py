"""What CLEAR puts on a clone of a model: attention, positions, weights, memory, ControlNets. Imports no sibling."""
