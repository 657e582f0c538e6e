"""The self-test: does this injector, on this machine, do what a spec says? It ends in a certificate.

| file | owns |
|---|---|
| `plan` | what is injected: every fault model and policy, in a small plan of its own |
| `measure` | pure: from the changes that were read back to counts, exact tests, stray bits, coincidences |
| `run` | the requests, on the engine |
| `certificate` | the findings as data (schemas/certificate.schema.json) |
"""
