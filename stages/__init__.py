"""One file is one stage of the Llama 2 pipeline; each runs inline, launched or by hand."""
