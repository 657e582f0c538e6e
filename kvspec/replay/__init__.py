"""Fault map -> engine -> the same answer, or where it first differs: what closes the pipeline.

| file | owns |
|---|---|
| `case` | maps -> trials to run: which maps belong together, what a map must say to be run |
| `recorded` | the answers of a run folder, to compare with instead of the maps' own records |
| `bench` | an engine for the model of the maps, checked against their geometry |
| `compare` | replayed against recorded: identical, or the first divergence and why it may be |
| `shrink`, `ddmin` | the fewest flips that keep an outcome (delta debugging) |

Nothing here is imported where vLLM is missing, except `case`, `recorded` and `compare`.
"""
