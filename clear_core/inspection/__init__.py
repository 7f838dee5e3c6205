"""The report about windows: cost line, text, page and figures. Reads the method, decides nothing."""
