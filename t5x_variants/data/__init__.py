"""Text in, batches of span-corrupted tokens out.

The modules follow an example on its way: `corpora` (documents),
`vocabularies` (tokens), `span_corruption` (inputs and targets), `tasks` (all
three as one seqio task) and `pipeline` (batches, and their exact position).
They alone, and `preparation`, import seqio and TensorFlow; importing this
package does not.

The other way, without TensorFlow where it is read: `preparation` writes a
task's tokens once as a `prepared_set` with its `prepared_info`, and `prepared`
makes batches of it with `noise` (span corruption in numpy) and `rows` (order
and packing).
"""
