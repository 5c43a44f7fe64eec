"""Text in, batches of span-corrupted tokens out.

An example takes this way: `text` (documents, and a vocabulary for them),
`tasks` (inputs and targets, as one seqio task) or `benchmarks`, and `pipeline`
(packed batches, and the exact position in them). They and `prepared.writer`
import seqio and TensorFlow; importing this package does not.

The other way reads without TensorFlow: `prepared.writer` writes a task's tokens
once, in the form that `prepared.format` and `prepared.info` describe, and
`prepared.reader` makes batches of them with `tasks.noise` (span corruption in
numpy) and `prepared.order` (order and packing).
"""
