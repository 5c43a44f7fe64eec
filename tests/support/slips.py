"""Slips on the command line: each a command, and words of its answer.

To add a slip, add a row to the command it is a slip of: what follows the
command, as a shell reads it, and what the answer must say:

  ARGUMENTS -> WORDS | WORDS     these words
  ARGUMENTS : WORDS | WORDS      the last binding's name and value, and these
  ARGUMENTS                      the last binding's name and value

A row may go on with an indented line. tests/cli/test_slips.py holds what is
true of every answer. Of the kinds and ranges of macros there are only examples
here: tests/cli/test_gin_values.py tries them on every macro. Paths are relative
to the folder that `World` fills:

  texts/        two text files             prepared/  what prepare_data made
  pairs.jsonl   40 pairs, 'yes' or 'no'    runs/relu  a finished run of 2 steps
  micro.gin     a model of a few numbers   hf/        that run, exported
  file.txt      a line of text             imported/  that export, imported
  empty/        an empty folder            broken/    damaged copies, see there
"""

import re
import shlex

# What words in capitals stand for, in a command or a row.
SHORT = dict(
  line.split(' = ', 1)
  for line in r"""
TINY = --gin_file=gin/models/tiny.gin
MICRO = --gin_file=micro.gin
RELU = --gin_file=gin/variants/relu.gin
GELU = --gin_file=gin/variants/gelu.gin
GEGLU = --gin_file=gin/variants/geglu.gin
MODEL = MICRO RELU
FILES = --gin_file=gin/data/text_files.gin
TEXT = FILES --gin.TEXT_FILES="'texts/*.txt'"
PAIRS = --gin_file=gin/data/pairs.gin --gin.PAIRS="'pairs.jsonl'"
PREPARED = --gin_file=gin/data/prepared.gin --gin.PREPARED_DATA="'prepared'"
INTO = --gin.MODEL_DIR="'runs/mine'" --gin.TRAIN_STEPS=2
PRETRAIN = --gin_file=gin/runs/pretrain.gin
FINETUNE = --gin_file=gin/runs/finetune.gin
START = --gin.INITIAL_CHECKPOINT_PATH="'runs/relu'"
INFERENCE = --gin_file=gin/runs/infer.gin
EVALUATION = --gin_file=gin/runs/eval.gin
SCORING = --gin_file=gin/runs/score.gin --gin.METRICS="['accuracy']"
FROM = --gin.CHECKPOINT_PATH="'runs/relu'"
ASKED = --gin.INFER_INPUTS="'file.txt'"
""".strip().split('\n')
)
TRAIN = 'train MODEL TEXT PRETRAIN INTO'
TUNE = 'train MODEL PAIRS FINETUNE INTO START'
PREPARED_TRAIN = 'train MODEL PREPARED PRETRAIN INTO'
INFER = 'infer MODEL INFERENCE FROM'
EVALUATE = 'evaluate MODEL TEXT EVALUATION FROM'
SCORE = 'evaluate PAIRS SCORING'
PREPARE = 'prepare_data TEXT'
PRECOMPILE = 'precompile MODEL --gin_file=gin/runs/precompile.gin'
IMPORT = 'import_weights MODEL'
SWEEP = 'sweep --gin_file=gin/sweeps/low_data.gin'


def argv(text: str) -> list[str]:
  """A command's words, those in capitals written out."""
  return [
    each
    for word in shlex.split(text)
    for each in (argv(SHORT[word]) if word in SHORT else [word])
  ]


def row(command: str, text: str) -> tuple[str, list[str], list[str]]:
  """A command as in a row, its words, and what its answer must say."""
  arguments, sign, rest = re.match(
    r'(.*?)(?:(?:^| )(->|:) (.*))?$', text
  ).groups()
  short = f'{command} {arguments}'.strip()
  found = argv(short)
  words = rest.split(' | ') if rest else []
  if sign != '->':
    name, value = re.match(r'--gin\.([^=]+)=(.*)$', found[-1]).groups()
    words += [name.split('.')[-1], value.strip("'")]
  return short, found, words


ROWS = {
  TRAIN: r"""
--gin_file=gin/models/tinny.gin ->
  'gin/models/tinny.gin' | Did you mean gin/models/tiny.gin?
--gin_file=gin/models -> 'gin/models' is a folder | gin/models/tiny.gin
--gin_file=file.txt -> file.txt | line 1 | NAME = VALUE
--gin_file=broken/binary.bin -> broken/binary.bin | is no text
--gin_file=runs/relu/metrics.jsonl -> runs/relu/metrics.jsonl | line 1
--gin_file=broken/itself.gin -> broken/itself.gin | includes itself
--gin_file=broken/gone.gin -> 'not/there.gin' | broken/gone.gin includes
--gin_file=broken/import.gin ->
  broken/import.gin | line 1 | No module named 'not_there'
--gin_file=gin/t5x/pretrain.gin ->
  gin/t5x/pretrain.gin | python -m t5x.train | gin/runs
--gin_file= -> --gin_file= names no file | --gin_file=FILE
--gin_file=gin/variants/gelu.gin ->
  gin/variants/relu.gin | gin/variants/gelu.gin | one of them
--gin_file=gin/data/embedded.gin ->
  gin/data/text_files.gin | gin/data/embedded.gin | one of them
FINETUNE START -> gin/runs/pretrain.gin | gin/runs/finetune.gin | one of them
--gin_file=gin/tpu/v5e-8.gin --gin_file=gin/tpu/v4-8.gin ->
  gin/tpu/v5e-8.gin | gin/tpu/v4-8.gin | one of them
TRAIN_STEPS=5 -> 'TRAIN_STEPS=5' | --gin.TRAIN_STEPS=5
--dryrun -> --dryrun | Did you mean --dry_run?
--TRAIN_STEPS=5 -> --TRAIN_STEPS | --gin.TRAIN_STEPS=5
--output=somewhere -> --output | is not a flag | --gin_file
--dry_run=perhaps -> --dry_run | 'perhaps' | true or false
--gin.TRAIN_STEPS 5 -> --gin.TRAIN_STEPS has no value | --gin.TRAIN_STEPS=VALUE
--gin.TRAIN_STEPS= -> TRAIN_STEPS | ''
--gin.=5 -> '' | --gin.MACRO=VALUE
--gin.TRIAN_STEPS=5 -> TRIAN_STEPS | Did you mean TRAIN_STEPS? | BATCH_SIZE
--gin.train_steps=5 -> train_steps | Did you mean TRAIN_STEPS?
--gin.TRAIN_STЕPS=5 -> TRAIN_ST\u0415PS | is not a name
--gin.PAIRS="'pairs.jsonl'" ->
  PAIRS | gin/data/pairs.gin | in place of gin/data/text_files.gin
--gin.FROZEN="'mlp'" ->
  FROZEN | X one of finetune | in place of gin/runs/pretrain.gin
--gin.MODEL_DIR=runs/mine -> numbers, True |
  'runs/mine' is not a gin value | --gin.MODEL_DIR="'runs/mine'"
--gin.MODEL_DIR=‘runs/mine’ -> MODEL_DIR | --gin.MODEL_DIR="'runs/mine'"
--gin.ACTIVATION=swish -> --gin.ACTIVATION="'swish'"
--gin.MODEL_DIR="'runs/mine" -> MODEL_DIR | --gin.MODEL_DIR="'runs/mine'"
--gin.PACK=true -> 'true' is not a gin value | --gin.PACK=True
--gin.TRAIN_STEPS=%NOT_THERE -> NOT_THERE
--gin.TRAIN_STEPS=%TRAIN_STEPS -> TRAIN_STEPS | refers to itself
--gin.LEARNING_RATE='@schedules.cosine()' -> no function 'schedules.cosine'
--gin.programs.OptimizationConfig.z_los=1.0 -> 'z_los' | Did you mean 'z_loss'?
--gin.trainer.trian.z_loss=1.0 ->
  'trainer.trian' | Did you mean 'trainer.train'?
--gin_search_paths=file.txt -> --gin_search_paths | file.txt | folder
--gin.TRAIN_STEPS="'5'" : whole number from 1 up | --gin.TRAIN_STEPS=5
--gin.TRAIN_STEPS=1e5 ->
  TRAIN_STEPS | 100000.0 | whole number | --gin.TRAIN_STEPS=100000
--gin.TRAIN_STEPS=0 : from 1
--gin.TRAIN_STEPS=10000000000000 : at most 2147483647
--gin.NUM_MICROBATCHES=3 -> BATCH_SIZE | NUM_MICROBATCHES | multiple of 3
--gin.DROPOUT_RATE=1.0 : to less than 1
--gin.PACK="'no'" : True or False
--gin.EVAL_STEPS=None : whole number
--gin.PROFILE_STEPS=20 : (20, 25)
--gin.MODEL_AXIS_SIZE=3
--gin.DATA_AXIS_SIZE=256 : None
--gin.PARAMETER_PARTITIONING_DIMS=3 : 1 | 2
--gin.ACTIVATION="'swigloo'" -> 'swigloo' | swish | polynorm
--gin.ACTIVATION=3 -> activation 3 | swish
--gin.MLP_DIM=100 --gin.GATED=True -> MLP_DIM | 100 | 99 | 102
--gin.VOCAB_SIZE=128 : 359
--gin.REMAT_POLICY="'some'" : minimal
--gin.FFN_IMPLEMENTATION="'cuda'" : pallas
--gin.FFN_SAVE="'everything'" : inputs
--gin.TASK_FEATURE_LENGTHS=512 : {'inputs'
--gin.TASK_FEATURE_LENGTHS="{'inputs': 64}" -> {'inputs': 64} | 'targets'
--gin.TASK_FEATURE_LENGTHS="{'inputs': '64', 'targets': 24}" ->
  TASK_FEATURE_LENGTHS | '64'
--gin.TASK_FEATURE_LENGTHS="{'inputs': -64, 'targets': 24}" ->
  TASK_FEATURE_LENGTHS | -64
--gin.network.T5Config.num_heads="'2'" : whole number
--gin.programs.OptimizationConfig.num_microbatches=1.0 ->
  programs.OptimizationConfig.num_microbatches | 1.0 | whole number
--gin.MODEL_DIR="'file.txt'"
--gin.MODEL_DIR="''"
--gin.MODEL_DIR="'s3://bucket/run'" : gs://
--gin.MODEL_DIR="'runs/a\\x00b'" -> MODEL_DIR
--gin.MODEL_DIR="'imported'" -> imported | INITIAL_CHECKPOINT_PATH
--gin.TEXT_FILES="'texts'"
--gin.TEXT_FILES="'nothing/*.txt'" : no file
--gin.TEXT_FILES='[]'
--gin.TEXT_FILES="'broken/binary.bin'" -> broken/binary.bin
--gin.TEXT_FILES="'broken/empty.txt'" -> broken/empty.txt
--gin.VALIDATION_FILES="'texts/a.txt'" -> texts/a.txt
--gin.DOCUMENT="'page'" : blank_line
--gin_file=nope.gin -> 'nope.gin' | gin/models/tiny.gin | gin/runs/pretrain.gin
--gin_file=/nope.gin -> '/nope.gin' | gin/models/tiny.gin
--gin_file=broken/word.gin -> broken/word.gin | line 2 | quotes
--gin_file=broken/equal.gin -> broken/equal.gin | line 1 | B == 3 | NAME = VALUE
--gin_file=broken/parameter.gin ->
  broken/parameter.gin | line 3 | no parameter 'z_los' | Did you mean 'z_loss'?
--gin.trainer.train.foo=1 ->
  --gin.trainer.train.foo=1 | no parameter 'foo' | log_period
--gin.network.T5Config.vocab_siez=1 ->
  no parameter 'vocab_siez' | Did you mean 'vocab_size'? | emb_dim
""",  # noqa: RUF001
  '': r"""
train --gin_file=micro.gin,gin/variants/relu.gin ->
  --gin_file=micro.gin --gin_file=gin/variants/relu.gin
train --gin_file=gin/models/tiny.gin --gin_file=gin/models/t5_1_1_small.gin ->
  gin/models/tiny.gin | gin/models/t5_1_1_small.gin | one of them
train MODEL TEXT EVALUATION FROM ->
  gin/runs/eval.gin | evaluate | gin/runs/X.gin with X one of finetune
infer MODEL TEXT PRETRAIN INTO ->
  gin/runs/pretrain.gin | train | --gin_file=gin/runs/infer.gin
train --gin_file=gin/sweeps/low_data.gin ->
  gin/sweeps/low_data.gin | t5x_variants.sweep
train -> a run file: --gin_file=gin/runs/X.gin with X one
train --gin_file=gin/variants/relu.gin TEXT PRETRAIN INTO ->
  MODEL | --gin_file=gin/models/X.gin with X one of | tiny
train --gin_file=micro.gin TEXT PRETRAIN INTO ->
  ACTIVATION | --gin_file=gin/variants/X.gin with X one of | relu
train MODEL PRETRAIN INTO ->
  TASK_FEATURE_LENGTHS | --gin_file=gin/data/X.gin with X one of
train MODEL TEXT PRETRAIN --gin.TRAIN_STEPS=2 -> --gin.MODEL_DIR="'...'"
train MODEL TEXT PRETRAIN --gin.MODEL_DIR="'runs/mine'" -> --gin.TRAIN_STEPS=
train MODEL PAIRS FINETUNE INTO -> --gin.INITIAL_CHECKPOINT_PATH="'...'"
train MODEL PAIRS --gin_file=gin/runs/low_data.gin INTO START ->
  --gin.LOW_DATA_SEED=
train MODEL FILES PRETRAIN INTO -> --gin.TEXT_FILES=
train gin/models/tiny.gin ->
  'gin/models/tiny.gin' | --gin_file=gin/models/tiny.gin
train --ginfile=micro.gin -> --ginfile | Did you mean --gin_file=micro.gin?
train --gin_file -> --gin_file
train TINY RELU PAIRS FINETUNE INTO START ->
  runs/relu | another model | gin/models
infer MICRO GELU INFERENCE FROM -> ReLU | GELU | gin/variants
infer TINY RELU INFERENCE FROM -> runs/relu | not a checkpoint of this model
evaluate MODEL PREPARED EVALUATION FROM --gin.PREDICTIONS_OUTPUT="'p.jsonl'"
prepare_data -> --output
prepare_data --output=new ->
  MIXTURE_OR_TASK_NAME | --gin_file=gin/data/X.gin with X one of
prepare_data --gin_file=gin/data/prepared.gin --output=new ->
  MIXTURE_OR_TASK_NAME is None
prepare_data PAIRS --output=new -> span_corruption
prepare_data FILES --gin.TEXT_FILES="'texts'" --output=new -> TEXT_FILES | texts
prepare_data FILES --gin.TEXT_FILES="'no/*'" --output=new -> TEXT_FILES | no/*
precompile --topology=v5e-8 --gin_file=gin/runs/precompile.gin ->
  MODEL | --gin_file=gin/models/X.gin with X one of
import_weights MICRO GEGLU --checkpoint=hf --output=new -> hf | relu
import_weights --checkpoint=hf --output=new -> --gin_file=gin/models/X.gin
export_hf --output=new -> --run
export_hf --run=runs/relu -> --output
export_hf --run=runs/nothing --output=new -> runs/nothing
export_hf --run=texts --output=new -> texts
export_hf --run=runs/relu --output=runs/relu -> --output=runs/relu
export_hf MICRO GELU --run=runs/relu --output=new -> ReLU | GELU
export_hf --run=broken/run --output=new -> broken/run | is damaged
sweep -> --gin_file=gin/sweeps/X.gin
sweep PRETRAIN -> gin/runs/pretrain.gin | --gin_file=gin/sweeps/X.gin
plot -> loss RUN
plot runs/relu -> 'runs/relu' | plot loss RUN
plot loss -> at least one run directory
plot loss runs/relu --batches=1 -> --batches | plot activations
plot activations runs/relu imported -> one run directory | 2
plot loss runs/nothing -> nothing
plot loss texts prepared -> texts | prepared | metrics.jsonl
plot loss runs/relu -o not/there.png -> not/there.png | folder
plot loss runs/relu -o loss.doc -> loss.doc | png
plot loss runs/relu -o broken/folder.png -> broken/folder.png
plot loss broken/metrics -> broken/metrics | metrics.jsonl
plot loss runs/relu --wohle -> --wohle | Did you mean --whole?
plot activations runs/nothing -> runs/nothing
plot activations texts -> texts
plot activations runs/relu --batches=0 -> --batches | 0
plot activations runs/relu --batches=few -> --batches | 'few'
plot activations broken/run -> broken/run | is damaged
report -> RUN
report runs/nothing -> runs/nothing
report texts -> texts | metrics.jsonl
report broken/metrics -> broken/metrics | metrics.jsonl
report runs/relu --baseline=swiglu -> 'swiglu' | --baseline takes one of ReLU
report runs/relu --table=glu_9 -> 'glu_9' | --table takes one of glu_1
report runs/relu -o texts -> texts
train MODEL TEXT -> X one of finetune, glu_finetune, low_data, pretrain
train MODEL TEXT INTO -> MODEL_DIR | where it belongs | precompile, pretrain
train --dry_run -> a run file
train MODEL TEXT --gin_file=broken/no_run.gin -> a run file
""",
  PREPARE: r"""
--output=new --workers=many -> --workers | 'many' | whole number
-> --output=DIR is missing
--output= -> --output
--output=file.txt -> --output=file.txt | folder
--output=file.txt/new -> --output=file.txt/new
--output=/proc/new -> --output=/proc/new
--output=new --workers=-1 -> --workers | -1
--output=prepared --gin.DOCUMENT="'line'" -> prepared | another --output
--output=new --gin.TASK_FEATURE_LENGTHS="'512'"
--output=runs/relu -> --output=runs/relu | something else | a new folder
""",
  TUNE: r"""
--gin.FROZEN="'nothing_has_this'" : token_embedder
--gin.FROZEN="'('" : regular expression
--gin.BEST_METRIC="'accurancy'" : loss
--gin.EARLY_STOPPING_PATIENCE=3 -> EARLY_STOPPING_PATIENCE | BEST_METRIC
--gin.DECODER="'greedy'" : @decoding.greedy
--gin.DECODER='@decoding.greedy()' -> DECODER | @decoding.greedy
--gin.METRICS="['accurcy']" -> 'accurcy' | accuracy
--gin.METRICS="'accuracy'" : list
--gin.LABELS="['true', 'false']" -> pairs.jsonl | 'yes' | ['true', 'false']
--gin.PAIRS="'file.txt'" -> pairs | file.txt
--gin.PAIRS="'nothing.jsonl'"
--gin.INITIAL_CHECKPOINT_PATH="'runs/nothing'" -> runs/nothing | a run directory
--gin.INITIAL_CHECKPOINT_PATH="'hf'" -> hf | import_weights
--gin.ACTIVATION="'gelu'" -> ReLU | GELU | INITIAL_CHECKPOINT_PARTIAL
--gin.INITIAL_CHECKPOINT_PATH="'broken/run'" -> broken/run | is damaged
""",
  INFER: r"""
ASKED --gin.decoding.beam_search.alpha=-1.0
--gin.CHECKPOINT_PATH="'runs/nothing'" -> runs/nothing | a run directory
--gin.CHECKPOINT_PATH="'file.txt'" -> file.txt | a run directory
--gin.CHECKPOINT_PATH="'empty'" -> empty | a run directory
--gin.CHECKPOINT_PATH="'prepared'" -> prepared | a run directory
--gin.CHECKPOINT_PATH="'runs/relu/metrics.jsonl'" ->
  runs/relu/metrics.jsonl | a run directory
--gin.INFER_INPUTS="'nothing.txt'"
--gin.INFER_INPUTS="'texts'"
--gin.INFER_INPUTS="'broken/empty.txt'" : empty
--gin.INFER_INPUTS="'broken/binary.bin'" -> broken/binary.bin | line 1 | UTF-8
--gin.INFER_INPUTS="'broken/lines.jsonl'" ->
  broken/lines.jsonl | line 2 | "inputs"
ASKED --gin.INFER_TASK="'x'" -> INFER_INPUTS | INFER_TASK | one of them
--gin.INFER_TASK="'nothing'"
ASKED --gin.INFER_MODE="'ask'" : 'predict'
ASKED --gin.INFER_MODE="'score'" -> INFER_MODE | targets | .jsonl
ASKED --gin.INFER_OUTPUT="'texts'"
ASKED --gin.INFER_OUTPUT="'file.txt/a.jsonl'"
ASKED --gin.INFER_OUTPUT="'pairs.jsonl'"
ASKED --gin.DECODE_LENGTH="'64'" : whole number
""",
  PREPARED_TRAIN: r"""
--gin.PREPARED_DATA="'nothing'" -> nothing | prepare_data
--gin.PREPARED_DATA="'runs/relu'" -> runs/relu | prepare_data
--gin.PREPARED_DATA="'texts'" -> texts | prepare_data
--gin.PREPARED_DATA="'file.txt'" -> file.txt | prepare_data
--gin.PREPARED_DATA="'broken/stopped'" -> broken/stopped | prepare_data
--gin.PREPARED_DATA="'broken/damaged'" -> broken/damaged | info.json
--gin.TASK_FEATURE_LENGTHS="{'inputs': 64, 'targets': 24}" ->
  TASK_FEATURE_LENGTHS | 'inputs': 64
--gin.MIXTURE_OR_TASK_NAME="'span_corruption_embedded'"
--gin.VOCAB_SIZE=128 : 359
""",
  EVALUATE: r"""
--gin.CHECKPOINT_PATH="'runs/nothing'" -> runs/nothing | a run directory
--gin.SPLIT="'tests'" : validation
--gin.EVAL_STEPS="'5'" : whole number
--gin.EVAL_OUTPUT="'texts'" --gin.EVAL_STEPS=1 -> EVAL_OUTPUT | texts
""",
  SCORE: r"""
-> --gin.PREDICTIONS="'...'"
--gin.PREDICTIONS="'nothing.jsonl'"
--gin.PREDICTIONS="'pairs.jsonl'" -> pairs.jsonl | line 1 | "prediction"
--gin.PREDICTIONS="'broken/one.jsonl'" : 1
""",
  PRECOMPILE: r"""
-> --topology
--topology=v5e-7 -> --topology=v5e-7 | v5e-8
--topology=v5e-250 -> Did you mean v5e-256?
--topology=tpu -> --topology=tpu
--topology=v5e-8 --gin.PROGRAMS="('trian',)" -> PROGRAMS | 'trian' | train
--topology=v5e-8 --gin.BATCH_SIZE="'128'" : whole number
--topology=v5e-8 --record=file.txt/x.json -> --record=file.txt/x.json
""",
  IMPORT: r"""
--output=new -> --checkpoint
--checkpoint=hf -> --output
--checkpoint=nothing --output=new -> nothing
--checkpoint=hf --output=texts -> --output=texts
--checkpoint=hf --output=file.txt -> --output=file.txt
--checkpoint=runs/relu --output=new ->
  runs/relu | need no import | --gin.INITIAL_CHECKPOINT_PATH=
""",
  SWEEP: r"""
--processes=0 -> --processes | 0
--processes=two -> --processes | 'two'
--gin.VARIANTS="['relu', 'swigloo']" -> swigloo | swiglu
--gin.VARIANTS="'relu'" : ['relu']
--gin.SEEDS=3 : list
--gin.SEEDS="['a']" -> SEEDS | 'a'
--gin.VARIANTS='[]' -> at least one variant
--gin.SWEEP_DIR="'file.txt'"
""",
}
SLIPS = [
  row(command, text)
  for command, block in ROWS.items()
  for text in block.replace('\n  ', ' ').strip('\n').split('\n')
]
