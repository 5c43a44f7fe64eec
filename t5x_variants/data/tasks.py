"""A corpus and a vocabulary as one seqio task, for gin and for t5x.

A task is named once and looked up by its name ever after, by
`seqio.get_mixture_or_task` and so by t5x. In gin:

  MIXTURE_OR_TASK_NAME = @tasks.span_corruption()
  tasks.span_corruption.source = @corpora.embedded()
  tasks.span_corruption.vocabulary = @vocabularies.byte()
"""

import functools
import hashlib

from t5x_variants.data import noise
from t5x_variants.data import span_corruption as corruption
from t5x_variants.data._tensorflow import seqio, tf
from t5x_variants.errors import UserError

_as_is = tf.autograph.experimental.do_not_convert
# What each registered task was made of.
_MADE_OF: dict[str, str] = {}


def _tokenize(dataset, output_features):
  """Text to the tokens of 'targets'."""
  vocabulary = output_features['targets'].vocabulary
  return dataset.map(
    lambda example: {'targets': vocabulary.encode_tf(example['text'])}
  )


def _append_eos(dataset, output_features):
  """Ends inputs and targets, in order: no parallel calls, a small state."""
  eos = {
    name: feature.vocabulary.eos_id
    for name, feature in output_features.items()
    if feature.add_eos
  }

  @_as_is
  def append(example):
    return {
      name: tf.concat([value, [eos[name]]], 0) if name in eos else value
      for name, value in example.items()
    }

  return dataset.map(append)


def _vocabulary_key(vocabulary) -> str:
  path = getattr(vocabulary, 'sentencepiece_model_file', '')
  return repr((type(vocabulary).__name__, path, vocabulary.extra_ids))


def span_corruption(
  source,
  vocabulary,
  name: str | None = None,
  noise_density: float = 0.15,
  mean_noise_span_length: float = 3.0,
  documents_joined: int = 1,
) -> str:
  """Registers span corruption of a corpus; again the same, again the name.

  Args:
    source: of `corpora`, or any seqio data source of {'text': string}.
    vocabulary: of `vocabularies`, or any seqio vocabulary with sentinels.
    name: of the task; None: one made of all that is given here.
    noise_density: share of tokens to hide.
    mean_noise_span_length: mean number of tokens of a hidden span.
    documents_joined: so many documents in a row are joined before they are
      cut into chunks (T5's own pretraining has 128); 1 keeps them apart.

  Returns:
    The name of the task.
  """
  noise.check_noise(noise_density, mean_noise_span_length)
  if not isinstance(documents_joined, int) or documents_joined < 1:
    raise UserError(f'documents_joined={documents_joined!r}: take 1 or more')
  made_of = repr(
    (
      getattr(source, 'key', None) or repr(source),
      _vocabulary_key(vocabulary),
      noise_density,
      mean_noise_span_length,
      documents_joined,
    )
  )
  if name is None:
    digest = hashlib.blake2b(made_of.encode(), digest_size=4).hexdigest()
    kind = getattr(source, 'name', type(source).__name__)
    name = f'span_corruption_{kind}_{digest}'
  if name in seqio.TaskRegistry.names():
    if _MADE_OF.get(name) != made_of:
      raise UserError(
        f'a task named {name!r} exists and was made of something else: give'
        ' span_corruption another name, or none'
      )
    return name
  feature = seqio.Feature(vocabulary=vocabulary, add_eos=True, dtype=tf.int32)
  seqio.TaskRegistry.add(
    name,
    source=source,
    output_features={'inputs': feature, 'targets': feature},
    preprocessors=[
      _tokenize,
      functools.partial(
        corruption.corrupt_spans,
        noise_density=noise_density,
        mean_noise_span_length=mean_noise_span_length,
        documents_joined=documents_joined,
      ),
      _append_eos,
    ],
  )
  _MADE_OF[name] = made_of
  return name
