"""Settings of a run that takes seconds; later ones of the same key count."""

SMALL = (
    "train.epochs=1",
    'train.precision="fp32"',
    "train.threads=1",
    "search.population=8",
    "search.parents=3",
    "search.crossover=3",
    "search.mutation=3",
    "search.generations=1",
    "latency.remeasure=2",
)
