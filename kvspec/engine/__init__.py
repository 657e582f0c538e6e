"""Plan -> records, on real vLLM. The only package of kvspec that needs torch and vLLM."""
