"""Text in, batches of span-corrupted tokens out.

The modules follow an example on its way: `corpora` (documents),
`vocabularies` (tokens), `span_corruption` (inputs and targets), `tasks` (all
three as one seqio task) and `pipeline` (batches, and their exact position).
They alone import seqio and TensorFlow; importing this package does not.
"""
