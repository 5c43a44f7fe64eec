r"""Exports a run to Hugging Face transformers.

  python -m t5x_variants.export_hf --run=runs/swiglu --output=hf/swiglu

Writes config.json, generation_config.json and model.safetensors (float32) of
a run's newest checkpoint. ReLU, GELU, Swish, squared ReLU and the GLU family
load as any T5:

  T5ForConditionalGeneration.from_pretrained('hf/swiglu')

xIELU and the learned activations bring a small modeling file:

  AutoModelForSeq2SeqLM.from_pretrained('hf/rational', trust_remote_code=True)

Neither torch nor transformers is needed to export. No tokenizer is written:
it is that of the training data, not of the model (docs/weights.md).
"""

import json
import pathlib
import sys

from absl import flags

from t5x_variants import errors, gin_utils

flags.DEFINE_string(
  'run',
  None,
  'A run directory, one of its checkpoints (RUN/checkpoints/STEP), or an '
  'import.',
)
flags.DEFINE_string(
  'output', None, 'The folder to write, which must not be there yet.'
)
gin_utils.define_flags()
FLAGS = flags.FLAGS
_CURE = 'Give its model and variant files by --gin_file.'


def main() -> None:
  """Reads a run, checks that it can be expressed, then writes."""
  from t5x_variants import logs, train_state
  from t5x_variants.weights import fit, hf_config, hugging_face, saved

  logs.quiet()
  if not FLAGS.run:
    raise errors.UserError(
      'The flag --run=DIR is missing: it names the run to export.'
    )
  output = saved.check_output(FLAGS.output)
  found = saved.open_checkpoint(FLAGS.run)
  model = _model_of(found)
  description = hf_config.config_of(model.config)
  shapes, _ = train_state.shapes_and_axes(model)
  fit.check(found, shapes, _CURE)
  variant = fit.variant_of(model.config)
  if None not in (found.variant, variant) and found.variant != variant:
    raise errors.UserError(
      f'The folder {found.where} is a checkpoint of {found.variant}, the gin '
      f'files are of {variant}. {_CURE}'
    )
  if FLAGS.dry_run:
    print(json.dumps(description, indent=2))
    return
  values = found.values()
  saved.write_folder(
    output, lambda folder: hugging_face.write(folder, model.config, values)
  )
  _say(f'{found.where} (step {found.step}) written to {output}.')
  _say(_how_to_load(output, description))


def _model_of(found):
  """The network that --gin_file or the run's own config.gin describes."""
  file = pathlib.Path(found.where).parent.parent / 'config.gin'
  if not FLAGS.gin_file and not file.is_file():
    raise errors.UserError(
      f'The file {file}, which describes the model, does not exist. {_CURE}'
    )
  try:
    model, _ = gin_utils.read_model(
      FLAGS.gin_file or [str(file)], FLAGS.gin_bindings, FLAGS.gin_search_paths
    )
  except errors.UserError as error:
    if FLAGS.gin_file:
      raise
    # It may be of an older version of this package.
    raise errors.UserError(f'{error} {_CURE}') from error
  return model


def _how_to_load(output: pathlib.Path, description: dict) -> str:
  if 'auto_map' in description:
    return (
      'Load it with transformers.AutoModelForSeq2SeqLM.from_pretrained('
      f'{str(output)!r}, trust_remote_code=True).'
    )
  return (
    'Load it with transformers.T5ForConditionalGeneration.from_pretrained('
    f'{str(output)!r}).'
  )


def _say(line: str) -> None:
  print(line, file=sys.stderr)


if __name__ == '__main__':
  gin_utils.run(main)
