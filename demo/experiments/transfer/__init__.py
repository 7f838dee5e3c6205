"""Uses that windows were not distilled for: enlarged pictures, a ControlNet, strips (paper, tables 3, 5 and 6)."""
