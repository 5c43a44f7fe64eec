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

from absl import flags

from t5x_variants.cli import exporting, gin_utils

exporting.define_flags()
gin_utils.define_flags()
FLAGS = flags.FLAGS


def main() -> None:
  """Reads a run, checks that it can be expressed, then writes."""
  from t5x_variants import logs
  from t5x_variants.weights import hf_config, hugging_face, saved

  logs.quiet()
  found, output = exporting.open_run()
  model, _ = exporting.model_of(found)
  description = hf_config.config_of(model.config)
  exporting.check(found, model)
  if FLAGS.dry_run:
    print(json.dumps(description, indent=2))
    return
  values = found.values()
  saved.write_folder(
    output, lambda folder: hugging_face.write(folder, model.config, values)
  )
  logs.say(f'{found.where} (step {found.step}) written to {output}.')
  logs.say(_how_to_load(output, description))


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


if __name__ == '__main__':
  gin_utils.run(main)
