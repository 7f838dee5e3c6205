"""The attentions that the paper compares CLEAR with (arXiv 2412.16112, tables 1 and 2), and what they cost."""
