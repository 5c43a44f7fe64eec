"""Seqio tasks of pairs, and parameters of a model for them."""

import functools
import statistics

import jax
import numpy as np
import seqio
import tensorflow as tf
from inference_cases import model

from t5x_variants.data import config
from t5x_variants.data.text import vocabularies
from t5x_variants.model import parameters
from t5x_variants.weights import saved

LENGTHS = {'inputs': 40, 'targets': 6}
# One input is longer than the model's, one is empty, one is no ASCII.
SHORT = [('one', 'a'), ('', 'bc'), ('naïve ☃', 'a'), ('z' * 20, 'four')]
LONG = [('x' * 60, 'y' * 30), ('w' * 33, 'b')]


@functools.cache
def params():
  """Of `model`, random."""
  shapes, _ = parameters.shapes_and_axes(model())
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), shapes
  )


def saved_params(folder):
  """Writes them as a checkpoint of step 7; the folder."""
  text = "ACTIVATION = 'rational'\nGATED = True\n"
  saved.write(folder, 7, params(), text)
  return folder


def same(targets, predictions):
  """Per cent that equal the target, and how many targets were whole."""
  pairs = list(zip(targets, predictions, strict=True))
  return {
    'same': 100 * statistics.fmean(t == p for t, p in pairs),
    'whole': sum(len(t) for t in targets),
  }


def register(name, pairs, metric_fns, metric_objs=()):
  """A seqio task of pairs, its postprocessor upper case."""

  def rows(split, shuffle_files, seed=None):
    inputs, targets = zip(*pairs, strict=True)
    return tf.data.Dataset.from_tensor_slices(
      {'inputs': list(inputs), 'targets': list(targets)}
    )

  feature = seqio.Feature(vocabularies.byte(), add_eos=True)
  seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(rows, splits=['validation', 'test']),
    output_features={'inputs': feature, 'targets': feature},
    preprocessors=[
      seqio.preprocessors.tokenize,
      seqio.preprocessors.append_eos_after_trim,
    ],
    postprocess_fn=lambda text, example, is_target: text.upper(),
    metric_fns=metric_fns,
    metric_objs=list(metric_objs),
  )
  return name


def dataset(name, **options):
  return config.DatasetConfig(
    name, LENGTHS, 'validation', batch_size=8, num_epochs=1, **options
  )
