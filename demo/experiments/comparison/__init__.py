"""The attentions of the paper's table 2, trained alike on one small FLUX and compared with its dense attention."""
