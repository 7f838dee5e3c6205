"""HTTP routes of the pack and the folder models/clear. Touches no model."""
