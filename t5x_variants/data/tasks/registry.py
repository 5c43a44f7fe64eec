"""A corpus and a vocabulary as one seqio task, for gin and for t5x.

A task is named once and looked up by its name ever after, by
`seqio.get_mixture_or_task` and so by t5x. In gin:

  MIXTURE_OR_TASK_NAME = @tasks.span_corruption()
  tasks.span_corruption.source = @corpora.embedded()
  tasks.span_corruption.vocabulary = @vocabularies.byte()

For t5x, which asks a task for its metrics and a model for its vocabularies, a
task has one metric, the held-out loss, unless it was given others, and
`vocabulary` looks up what a task has. The metrics are seqio's: a registered
task has them in `predict_metric_fns`, and what they compare is made of text by
its `postprocess_fn`.
"""

import functools
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence

from t5x_variants import errors
from t5x_variants.data.base._tensorflow import seqio, tf
from t5x_variants.data.tasks import answers, noise
from t5x_variants.data.tasks import span_corruption as corruption
from t5x_variants.data.text import documents

_as_is = tf.autograph.experimental.do_not_convert
_logger = logging.getLogger('t5x_variants')
# What each registered task was made of.
_MADE_OF: dict[str, str] = {}


def _tokenize(dataset, output_features):
  """Text to the tokens of 'targets'."""
  vocabulary = output_features['targets'].vocabulary
  return dataset.map(
    lambda example: {'targets': vocabulary.encode_tf(example['text'])}
  )


def append_eos(dataset, output_features):
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


def _number_of_tokens(output, *, example, is_target):
  """What `nats_per_token` knows of a target: how many tokens it has."""
  return len(example['targets']) if is_target else output


def nats_per_token(targets, scores) -> dict[str, float]:
  """Held-out loss, a metric of seqio.

  Args:
    targets: the number of tokens of each target, EOS included.
    scores: the log likelihood of each target, in nats.

  Returns:
    The loss in nats per target token, and over how many tokens it is.
  """
  tokens = sum(targets)
  return {
    'nats_per_token': -float(sum(scores)) / max(tokens, 1),
    'target_tokens': tokens,
  }


def vocabulary(
  mixture_or_task_name: str | None, feature: str, vocab_size: int | None = None
):
  """The vocabulary that a registered task or mixture has for a feature.

  Args:
    mixture_or_task_name: a name registered with seqio.
    feature: 'inputs' or 'targets'.
    vocab_size: ids that the model has; None: any number.

  Returns:
    seqio's vocabulary.

  Raises:
    errors.UserError: no such task or feature, or more ids than the model has.
  """
  if mixture_or_task_name is None:
    raise errors.UserError(
      'MIXTURE_OR_TASK_NAME is None: prepared data (gin/data/prepared.gin) is'
      ' read by t5x_variants.train only; give t5x the file it was prepared'
      ' from, such as gin/data/embedded.gin or gin/data/text_files.gin.'
    )
  task = get(mixture_or_task_name)
  if feature not in task.output_features:
    raise errors.UserError(
      f'The task {mixture_or_task_name} has no feature {feature!r}, but'
      f' {sorted(task.output_features)}: an encoder-decoder needs inputs and'
      ' targets.'
    )
  found = task.output_features[feature].vocabulary
  if vocab_size is not None and found.vocab_size > vocab_size:
    raise errors.UserError(
      f'The vocabulary of {mixture_or_task_name} has {found.vocab_size} ids,'
      f' but the model VOCAB_SIZE={vocab_size}: set --gin.VOCAB_SIZE to at'
      ' least that, better to the next multiple of 128.'
    )
  return found


def get(mixture_or_task_name: str):
  """The task or mixture of that name; without one, a `UserError`."""
  try:
    return seqio.get_mixture_or_task(mixture_or_task_name)
  except ValueError as error:
    raise errors.UserError(
      f'MIXTURE_OR_TASK_NAME is {mixture_or_task_name!r}, which is not'
      ' registered: take a file of gin/data, or import the module that'
      ' registers it.'
    ) from error


def of_split(found, split: str) -> list:
  """The tasks of a registered task or mixture that have a split.

  A task of a mixture that lacks it is left out, as seqio does. That is said,
  but for our own benchmarks, where it is meant: MNLI's second development set
  has no training set of its own.

  Args:
    found: what `get` gives.
    split: such as 'train' or 'validation'.

  Raises:
    errors.UserError: no task has that split, or they lack inputs or targets.
  """
  if split not in found.splits:
    raise errors.UserError(
      f'The split is {split!r}; {found.name} has {sorted(found.splits)}.'
    )
  if missing := {'inputs', 'targets'} - set(found.output_features):
    raise errors.UserError(
      f'The task {found.name} has no feature {min(missing)!r}, but'
      f' {sorted(found.output_features)}: an encoder-decoder needs inputs and'
      ' targets.'
    )
  every = seqio.get_subtasks(found)
  chosen = [task for task in every if split in task.splits]
  if len(chosen) < len(every) and found.name not in _MADE_OF:
    left_out = [task.name for task in every if task not in chosen]
    _say_left_out(found.name, split, ', '.join(left_out))
  return chosen


@functools.cache
def _say_left_out(name: str, split: str, left_out: str) -> None:
  """Once, though a split is read as batches and as examples."""
  _logger.warning(
    'Tasks of %s have no split %r and are left out of it: %s.',
    name,
    split,
    left_out,
  )


def metric_objs(task) -> list:
  """The metrics of a seqio task that are objects and not functions."""
  found = task.metric_objs
  # seqio puts those that it makes of functions behind them.
  return list(found[: len(found) - len(task.metric_fns)])


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
    raise errors.UserError(
      f'The documents_joined is {documents_joined!r}; it must be 1 or more.'
    )
  return _register(
    'span_corruption',
    name,
    source,
    vocabulary,
    (noise_density, mean_noise_span_length, documents_joined),
    [
      _tokenize,
      functools.partial(
        corruption.corrupt_spans,
        noise_density=noise_density,
        mean_noise_span_length=mean_noise_span_length,
        documents_joined=documents_joined,
      ),
      append_eos,
    ],
  )


def text_to_text(
  source,
  vocabulary,
  name: str | None = None,
  prefix: str = '',
  metric_fns: Sequence[str | Callable] = (),
  labels: Sequence[str] | None = None,
  postprocess_fn: Callable | None = None,
) -> str:
  """Registers pairs of inputs and targets; again the same, again the name.

  Inputs or targets that are longer than the model's are cut, EOS kept. With
  metrics the task is judged by these and no longer by `nats_per_token`.

  Args:
    source: of `corpora.pairs`; or any seqio data source of {'inputs': string,
      'targets': string}, whose other fields are kept for `postprocess_fn`.
    vocabulary: the one that the model was trained with.
    name: of the task; None: one made of all that is given here.
    prefix: put before every input, such as T5's 'cola sentence: '.
    metric_fns: functions of (targets, predictions), such as those of `scores`;
      or their names, see `scores.get`.
    labels: the only targets there may be; None: any text. The files of
      `corpora.pairs` are read through at once to check them.
    postprocess_fn: (text, *, example, is_target) -> what the metrics compare;
      None: the text, stripped.

  Returns:
    The name of the task.

  Raises:
    errors.UserError: a target outside the labels, a function that is no metric,
      or another task of that name.
  """
  if labels is not None:
    answers.check_labels(labels, source)
    labels = tuple(labels)
  metric_fns = answers.metrics(metric_fns, labels)
  names = [answers.name_of(function) for function in metric_fns]
  if postprocess_fn is None:
    postprocess_fn = functools.partial(answers.as_text, labels=labels)
  return _register(
    'text_to_text',
    name,
    source,
    vocabulary,
    (prefix, *((names, labels) if names or labels else ())),
    [
      functools.partial(_tokenize_pair, prefix=prefix),
      seqio.preprocessors.append_eos_after_trim,
    ],
    metric_fns,
    postprocess_fn,
  )


def _tokenize_pair(dataset, output_features, prefix: str):
  """Both fields of a document (see `corpora.pairs`) to tokens.

  The texts are kept, as seqio's `inputs_pretokenized`, `targets_pretokenized`.
  """
  vocabulary = output_features['targets'].vocabulary

  @_as_is
  def tokenize(example):
    example = dict(example)
    if 'text' in example:
      pair = tf.strings.split(example.pop('text'), documents.SEPARATOR)
      example |= {'inputs': pair[0], 'targets': pair[1]}
    for name, start in {'inputs': prefix, 'targets': ''}.items():
      text = tf.strings.join([start, example[name]])
      example[name + '_pretokenized'] = text
      example[name] = vocabulary.encode_tf(text)
    return example

  return dataset.map(tokenize)


def mixture(rates: Mapping[str, float], name: str | None = None) -> str:
  """Registers a mixture of registered tasks; again the same, again the name.

  Args:
    rates: how often an example is of each task, in proportion.
    name: of the mixture, where no other has it; else, or without one, it is
      made of what is mixed.

  Returns:
    The name of the mixture.
  """
  made_of = repr(list(rates.items()))
  name = _free_name(name, 'mixture', made_of)
  if name not in seqio.MixtureRegistry.names():
    # A pass over it is one over each task: the smallest does not end it.
    sample = functools.partial(
      tf.data.Dataset.sample_from_datasets, stop_on_empty_dataset=False
    )
    seqio.MixtureRegistry.add(name, list(rates.items()), sample_fn=sample)
    _MADE_OF[name] = made_of
  return name


def to_the_end(found) -> str:
  """The name of a mixture whose pass ends with its last task.

  A pass over a mixture as seqio registers it ends with the first task that has
  no more examples, and so leaves out those of larger ones.

  Args:
    found: a registered task or mixture.

  Returns:
    Its own name, or that of one with the same tasks and rates.
  """
  if found.name in _MADE_OF or not isinstance(found, seqio.Mixture):
    return found.name
  rates = {task.name: found.get_rate(task) for task in found.tasks}
  return mixture({name: float(rate) for name, rate in rates.items()})


def _free_name(wanted: str | None, stem: str, made_of: str) -> str:
  """A short name where nothing else has it, or one that is made of all."""
  taken = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
  if wanted and (wanted not in taken or _MADE_OF.get(wanted) == made_of):
    return wanted
  digest = hashlib.blake2b(made_of.encode(), digest_size=4).hexdigest()
  return f'{wanted or stem}_{digest}'


def _register(
  kind: str,
  name: str | None,
  source,
  vocabulary,
  options,
  preprocessors,
  metric_fns=(),
  postprocess_fn=None,
) -> str:
  """Adds a task to seqio's registry, unless the same one is there."""
  made_of = repr(
    (
      getattr(source, 'key', None) or repr(source),
      _vocabulary_key(vocabulary),
      *options,
    )
  )
  if name is None:
    found = getattr(source, 'name', type(source).__name__)
    name = _free_name(
      getattr(source, 'task_name', None), f'{kind}_{found}', made_of
    )
  if name in seqio.TaskRegistry.names():
    if _MADE_OF.get(name) != made_of:
      raise errors.UserError(
        f'A task named {name!r} exists and was made of something else: give'
        f' {kind} another name, or none.'
      )
    return name
  feature = seqio.Feature(vocabulary=vocabulary, add_eos=True, dtype=tf.int32)
  seqio.TaskRegistry.add(
    name,
    source=source,
    output_features={'inputs': feature, 'targets': feature},
    preprocessors=preprocessors,
    # Targets are counted for the loss, compared by any other metric: seqio
    # makes them up once for all metrics of a task.
    postprocess_fn=postprocess_fn if metric_fns else _number_of_tokens,
    metric_fns=list(metric_fns) or [nats_per_token],
  )
  _MADE_OF[name] = made_of
  return name
