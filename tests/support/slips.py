"""Slips on the command line: each a command, and words of its answer.

To add a slip, add a row: a name, the command as a shell splits it into words
(a module of the package or a script of tools/, and its arguments), and what
the answer must say. tests/cli/test_slips.py holds what is true of every answer.
Paths are relative to the folder that `World` there fills:

  texts/        two text files             prepared/  what prepare_data made
  pairs.jsonl   40 pairs, 'yes' or 'no'    runs/relu  a finished run of 2 steps
  micro.gin     a model of a few numbers   hf/        that run, exported
  file.txt      a line of text             imported/  that export, imported
  empty/        an empty folder            broken/    damaged copies, see there
"""

MODEL = ['--gin_file=micro.gin', '--gin_file=gin/variants/relu.gin']
TEXT = ['--gin_file=gin/data/text_files.gin', "--gin.TEXT_FILES='texts/*.txt'"]
PAIRS = ['--gin_file=gin/data/pairs.gin', "--gin.PAIRS='pairs.jsonl'"]
PREPARED = [
  '--gin_file=gin/data/prepared.gin',
  "--gin.PREPARED_DATA='prepared'",
]
INTO = ["--gin.MODEL_DIR='runs/mine'", '--gin.TRAIN_STEPS=2']
PRETRAIN = '--gin_file=gin/runs/pretrain.gin'
FINETUNE = '--gin_file=gin/runs/finetune.gin'
START = "--gin.INITIAL_CHECKPOINT_PATH='runs/relu'"
FROM = "--gin.CHECKPOINT_PATH='runs/relu'"


def train(*more):
  return ['train', *MODEL, *TEXT, PRETRAIN, *INTO, *more]


def prepared(*more):
  return ['train', *MODEL, *PREPARED, PRETRAIN, *INTO, *more]


def finetune(*more):
  return ['train', *MODEL, *PAIRS, FINETUNE, *INTO, START, *more]


def infer(*more):
  return ['infer', *MODEL, '--gin_file=gin/runs/infer.gin', FROM, *more]


def evaluate(*more):
  run = '--gin_file=gin/runs/eval.gin'
  return ['evaluate', *MODEL, *TEXT, run, FROM, *more]


def judge(*more):
  run = '--gin_file=gin/runs/judge.gin'
  metrics = "--gin.METRICS=['accuracy']"
  return ['evaluate', *PAIRS, run, metrics, *more]


def prepare(*more):
  return ['prepare_data', *TEXT, *more]


def precompile(*more):
  run = '--gin_file=gin/runs/precompile.gin'
  return ['precompile', *MODEL, run, *more]


def import_weights(*more):
  return ['import_weights', *MODEL, *more]


def sweep(*more):
  return ['sweep', '--gin_file=gin/sweeps/low_data.gin', *more]


# Flags, files and names; the same for every command that reads gin files.
FILES = {
  'a gin file that is not there': (
    train('--gin_file=gin/models/tinny.gin'),
    ["'gin/models/tinny.gin'", 'gin/models/tiny.gin'],
  ),
  'a folder as a gin file': (
    train('--gin_file=gin/models'),
    ["'gin/models' is a folder", 'gin/models/tiny.gin'],
  ),
  'files with a comma between them': (
    ['train', '--gin_file=micro.gin,gin/variants/relu.gin'],
    ['--gin_file=micro.gin --gin_file=gin/variants/relu.gin'],
  ),
  'a text file as a gin file': (
    train('--gin_file=file.txt'),
    ['file.txt', 'line 1', 'NAME = VALUE'],
  ),
  'a binary file as a gin file': (
    train('--gin_file=broken/binary.bin'),
    ['broken/binary.bin', 'is no text'],
  ),
  'metrics as a gin file': (
    train('--gin_file=runs/relu/metrics.jsonl'),
    ['runs/relu/metrics.jsonl', 'line 1'],
  ),
  'a gin file that includes itself': (
    train('--gin_file=broken/itself.gin'),
    ['broken/itself.gin', 'includes itself'],
  ),
  'a gin file that includes what is not there': (
    train('--gin_file=broken/gone.gin'),
    ["'not/there.gin'", 'broken/gone.gin includes'],
  ),
  'a gin file that imports what is not there': (
    train('--gin_file=broken/import.gin'),
    ['broken/import.gin', "'not_there'"],
  ),
  'a file for another launcher': (
    train('--gin_file=gin/t5x/pretrain.gin'),
    ['gin/t5x/pretrain.gin', 'python -m t5x.train', 'gin/runs'],
  ),
  'an empty name of a gin file': (
    train('--gin_file='),
    ['--gin_file= names no file', '--gin_file=FILE'],
  ),
  'two shipped model files': (
    ['train', '--gin_file=gin/models/tiny.gin']
    + ['--gin_file=gin/models/t5_1_1_small.gin'],
    ['gin/models/tiny.gin', 'gin/models/t5_1_1_small.gin', 'one of them'],
  ),
  'two variant files': (
    train('--gin_file=gin/variants/gelu.gin'),
    ['gin/variants/relu.gin', 'gin/variants/gelu.gin', 'one of them'],
  ),
  'two data files': (
    train('--gin_file=gin/data/embedded.gin'),
    ['gin/data/text_files.gin', 'gin/data/embedded.gin', 'one of them'],
  ),
  'two run files': (
    train(FINETUNE, START),
    ['gin/runs/pretrain.gin', 'gin/runs/finetune.gin', 'one of them'],
  ),
  'two slices': (
    train('--gin_file=gin/tpu/v5e-8.gin', '--gin_file=gin/tpu/v4-8.gin'),
    ['gin/tpu/v5e-8.gin', 'gin/tpu/v4-8.gin', 'one of them'],
  ),
  'a run file of another command': (
    ['train', *MODEL, *TEXT, '--gin_file=gin/runs/eval.gin', FROM],
    ['gin/runs/eval.gin', 'evaluate', 'gin/runs/X.gin with X one of finetune'],
  ),
  'a training file for infer': (
    ['infer', *MODEL, *TEXT, PRETRAIN, *INTO],
    ['gin/runs/pretrain.gin', 'train', '--gin_file=gin/runs/infer.gin'],
  ),
  'a sweep for train': (
    ['train', '--gin_file=gin/sweeps/low_data.gin'],
    ['gin/sweeps/low_data.gin', 't5x_variants.sweep'],
  ),
  'no file at all': (['train'], ['--gin_file=gin/runs/X.gin']),
  'no model file': (
    ['train', '--gin_file=gin/variants/relu.gin', *TEXT, PRETRAIN, *INTO],
    ['MODEL', '--gin_file=gin/models/X.gin with X one of', 'tiny'],
  ),
  'no variant file': (
    ['train', '--gin_file=micro.gin', *TEXT, PRETRAIN, *INTO],
    ['ACTIVATION', '--gin_file=gin/variants/X.gin with X one of', 'relu'],
  ),
  'no data file': (
    ['train', *MODEL, PRETRAIN, *INTO],
    ['TASK_FEATURE_LENGTHS', '--gin_file=gin/data/X.gin with X one of'],
  ),
  'no MODEL_DIR': (
    ['train', *MODEL, *TEXT, PRETRAIN, '--gin.TRAIN_STEPS=2'],
    ['--gin.MODEL_DIR="\'...\'"'],
  ),
  'no TRAIN_STEPS': (
    ['train', *MODEL, *TEXT, PRETRAIN, "--gin.MODEL_DIR='runs/mine'"],
    ['--gin.TRAIN_STEPS='],
  ),
  'fine-tuning from nothing': (
    ['train', *MODEL, *PAIRS, FINETUNE, *INTO],
    ['--gin.INITIAL_CHECKPOINT_PATH="\'...\'"'],
  ),
  'low data without a seed': (
    ['train', *MODEL, *PAIRS, '--gin_file=gin/runs/low_data.gin', *INTO, START],
    ['--gin.LOW_DATA_SEED='],
  ),
  'no TEXT_FILES': (
    ['train', *MODEL, TEXT[0], PRETRAIN, *INTO],
    ['--gin.TEXT_FILES='],
  ),
  'a file without its flag': (
    ['train', 'gin/models/tiny.gin'],
    ["'gin/models/tiny.gin'", '--gin_file=gin/models/tiny.gin'],
  ),
  'a value without its flag': (
    train('TRAIN_STEPS=5'),
    ["'TRAIN_STEPS=5'", '--gin.TRAIN_STEPS=5'],
  ),
  'a typo in a flag': (
    ['train', '--ginfile=micro.gin'],
    ['--ginfile', 'Did you mean --gin_file=micro.gin?'],
  ),
  'a typo in dry_run': (
    train('--dryrun'),
    ['--dryrun', 'Did you mean --dry_run?'],
  ),
  'a macro without gin.': (
    train('--TRAIN_STEPS=5'),
    ['--TRAIN_STEPS', '--gin.TRAIN_STEPS=5'],
  ),
  'a flag of another command': (
    train('--output=somewhere'),
    ['--output', 'is not a flag', '--gin_file'],
  ),
  'a switch with a strange value': (
    train('--dry_run=perhaps'),
    ['--dry_run', "'perhaps'", 'true or false'],
  ),
  'a flag without its value': (['train', '--gin_file'], ['--gin_file']),
  'a number flag with a word': (
    prepare('--output=new', '--workers=many'),
    ['--workers', "'many'", 'whole number'],
  ),
  'a macro without a value': (
    train('--gin.TRAIN_STEPS', '5'),
    ['--gin.TRAIN_STEPS has no value', '--gin.TRAIN_STEPS=VALUE'],
  ),
  'an empty value': (train('--gin.TRAIN_STEPS='), ['TRAIN_STEPS', "''"]),
  'no macro at all': (train('--gin.=5'), ["''", '--gin.MACRO=VALUE']),
  'a typo in a macro': (
    train('--gin.TRIAN_STEPS=5'),
    ['TRIAN_STEPS', 'Did you mean TRAIN_STEPS?'],
  ),
  'a macro in lower case': (
    train('--gin.train_steps=5'),
    ['train_steps', 'Did you mean TRAIN_STEPS?'],
  ),
  'a macro with a letter of another alphabet': (
    train('--gin.TRAIN_STЕPS=5'),  # noqa: RUF001
    ['TRAIN_ST\\u0415PS', 'is not a name'],
  ),
  'a macro of another file': (
    train("--gin.PAIRS='pairs.jsonl'"),
    ['PAIRS', 'gin/data/pairs.gin', 'in place of gin/data/text_files.gin'],
  ),
  'a macro of fine-tuning': (
    train("--gin.FROZEN='mlp'"),
    ['FROZEN', 'X one of finetune', 'in place of gin/runs/pretrain.gin'],
  ),
  'quotes that the shell took': (
    train('--gin.MODEL_DIR=runs/mine'),
    ["'runs/mine' is not a gin value", '--gin.MODEL_DIR="\'runs/mine\'"'],
  ),
  'typographic quotes': (
    train('--gin.MODEL_DIR=‘runs/mine’'),  # noqa: RUF001
    ['MODEL_DIR', '--gin.MODEL_DIR="\'runs/mine\'"'],
  ),
  'a word in place of a string': (
    train('--gin.ACTIVATION=swish'),
    ['--gin.ACTIVATION="\'swish\'"'],
  ),
  'a quote too few': (
    train("--gin.MODEL_DIR='runs/mine"),
    ['MODEL_DIR', '--gin.MODEL_DIR="\'runs/mine\'"'],
  ),
  'true in lower case': (
    train('--gin.PACK=true'),
    ["'true' is not a gin value", '--gin.PACK=True'],
  ),
  'a reference to nothing': (
    train('--gin.TRAIN_STEPS=%NOT_THERE'),
    ['NOT_THERE'],
  ),
  'a macro that is itself': (
    train('--gin.TRAIN_STEPS=%TRAIN_STEPS'),
    ['TRAIN_STEPS', 'refers to itself'],
  ),
  'a function that is not there': (
    train('--gin.LEARNING_RATE=@schedules.cosine()'),
    ["'schedules.cosine'"],
  ),
  'a parameter that is not there': (
    train('--gin.programs.OptimizationConfig.z_los=1.0'),
    ["'z_los'", "Did you mean 'z_loss'?"],
  ),
  'a function of a typo': (
    train('--gin.trainer.trian.z_loss=1.0'),
    ["'trainer.trian'", "Did you mean 'trainer.train'?"],
  ),
  'a search path that is no folder': (
    train('--gin_search_paths=file.txt'),
    ['--gin_search_paths', 'file.txt', 'folder'],
  ),
}

# A value of the wrong kind, or out of range.
VALUES = {
  'steps in quotes': (
    train("--gin.TRAIN_STEPS='5'"),
    ['TRAIN_STEPS', "'5'", 'whole number from 1 up', '--gin.TRAIN_STEPS=5'],
  ),
  'steps as a float': (
    train('--gin.TRAIN_STEPS=1e5'),
    ['TRAIN_STEPS', '100000.0', 'whole number', '--gin.TRAIN_STEPS=100000'],
  ),
  'no steps': (train('--gin.TRAIN_STEPS=0'), ['TRAIN_STEPS', '0', 'from 1']),
  'negative steps': (train('--gin.TRAIN_STEPS=-5'), ['TRAIN_STEPS', '-5']),
  'steps True': (train('--gin.TRAIN_STEPS=True'), ['TRAIN_STEPS', 'True']),
  'steps None': (train('--gin.TRAIN_STEPS=None'), ['TRAIN_STEPS', 'None']),
  'steps in a list': (train('--gin.TRAIN_STEPS=[5]'), ['TRAIN_STEPS', '[5]']),
  'steps for ever': (
    train('--gin.TRAIN_STEPS=10000000000000'),
    ['TRAIN_STEPS', '10000000000000', 'at most 2147483647'],
  ),
  'a batch in quotes': (
    train("--gin.BATCH_SIZE='16'"),
    ['BATCH_SIZE', "'16'", 'whole number', '--gin.BATCH_SIZE=16'],
  ),
  'a batch of a half': (train('--gin.BATCH_SIZE=0.5'), ['BATCH_SIZE', '0.5']),
  'a batch of nothing': (train('--gin.BATCH_SIZE=0'), ['BATCH_SIZE', '0']),
  'a batch that microbatches do not divide': (
    train('--gin.NUM_MICROBATCHES=3'),
    ['BATCH_SIZE', 'NUM_MICROBATCHES', 'multiple of 3'],
  ),
  'microbatches of a word': (
    train("--gin.NUM_MICROBATCHES='two'"),
    ['NUM_MICROBATCHES', "'two'", 'whole number'],
  ),
  'a rate in quotes': (
    train("--gin.LEARNING_RATE='0.1'"),
    ['LEARNING_RATE', "'0.1'", 'number', '--gin.LEARNING_RATE=0.1'],
  ),
  'a negative rate': (
    train('--gin.LEARNING_RATE=-1.0'),
    ['LEARNING_RATE', '-1.0'],
  ),
  'an infinite rate': (
    train('--gin.LEARNING_RATE=1e999'),
    ['LEARNING_RATE', 'inf'],
  ),
  'a rate None': (train('--gin.LEARNING_RATE=None'), ['LEARNING_RATE', 'None']),
  'a rate of coefficients in a list': (
    train('--gin.COEFFICIENT_LEARNING_RATE=[1]'),
    ['COEFFICIENT_LEARNING_RATE', '[1]', 'number'],
  ),
  'a warm-up of more than all': (
    train('--gin.COEFFICIENT_WARMUP_FRACTION=2'),
    ['COEFFICIENT_WARMUP_FRACTION', '2', 'to 1'],
  ),
  'a warm-up of no step': (
    train('--gin.WARMUP_STEPS=0'),
    ['WARMUP_STEPS', '0', 'from 1'],
  ),
  'dropout of all': (
    train('--gin.DROPOUT_RATE=1.0'),
    ['DROPOUT_RATE', '1.0', 'to less than 1'],
  ),
  'dropout in per cent': (
    train('--gin.DROPOUT_RATE=10'),
    ['DROPOUT_RATE', '10', 'to less than 1'],
  ),
  'dropout as a word': (
    train("--gin.DROPOUT_RATE='none'"),
    ['DROPOUT_RATE', "'none'", 'number'],
  ),
  'z-loss as a word': (train("--gin.Z_LOSS='no'"), ['Z_LOSS', "'no'"]),
  'smoothing of all': (
    train('--gin.LABEL_SMOOTHING=1.5'),
    ['LABEL_SMOOTHING', '1.5'],
  ),
  'packing as a word': (
    train("--gin.PACK='no'"),
    ['PACK', "'no'", 'True or False'],
  ),
  'a seed with a point': (
    train('--gin.RANDOM_SEED=1.5'),
    ['RANDOM_SEED', '1.5', 'whole number'],
  ),
  'a seed too large': (
    train('--gin.RANDOM_SEED=99999999999999999999'),
    ['RANDOM_SEED', '99999999999999999999'],
  ),
  'a negative seed': (train('--gin.RANDOM_SEED=-1'), ['RANDOM_SEED', '-1']),
  'a period of nothing': (train('--gin.LOG_PERIOD=0'), ['LOG_PERIOD', '0']),
  'an evaluation of no batch': (
    train('--gin.EVAL_STEPS=None'),
    ['EVAL_STEPS', 'None', 'whole number'],
  ),
  'no checkpoint kept': (
    train('--gin.KEEP_CHECKPOINTS=0'),
    ['KEEP_CHECKPOINTS', '0', 'or None'],
  ),
  'one step to trace': (
    train('--gin.PROFILE_STEPS=20'),
    ['PROFILE_STEPS', '20', '(20, 25)'],
  ),
  'a model axis that divides nothing': (
    train('--gin.MODEL_AXIS_SIZE=3'),
    ['MODEL_AXIS_SIZE', '3'],
  ),
  'a model axis None': (
    train('--gin.MODEL_AXIS_SIZE=None'),
    ['MODEL_AXIS_SIZE', 'None'],
  ),
  'a data axis of another slice': (
    train('--gin.DATA_AXIS_SIZE=256'),
    ['DATA_AXIS_SIZE', '256', 'None'],
  ),
  'three partitioning dimensions': (
    train('--gin.PARAMETER_PARTITIONING_DIMS=3'),
    ['PARAMETER_PARTITIONING_DIMS', '3', '1', '2'],
  ),
  'an activation that is not there': (
    train("--gin.ACTIVATION='swigloo'"),
    ["'swigloo'", 'swish'],
  ),
  'an activation that is a number': (
    train('--gin.ACTIVATION=3'),
    ['activation 3', 'swish'],
  ),
  'a gate that is a word': (
    train("--gin.GATED='yes'"),
    ['GATED', "'yes'", 'True or False'],
  ),
  'a width in quotes': (
    train("--gin.MLP_DIM='24'"),
    ['MLP_DIM', "'24'", 'whole number'],
  ),
  'a width that no gate fits': (
    train('--gin.MLP_DIM=100', '--gin.GATED=True'),
    ['MLP_DIM', '100', '99', '102'],
  ),
  'a vocabulary that is too small': (
    train('--gin.VOCAB_SIZE=128'),
    ['VOCAB_SIZE', '128', '359'],
  ),
  'a policy that is not there': (
    train("--gin.REMAT_POLICY='some'"),
    ['REMAT_POLICY', "'some'", 'minimal'],
  ),
  'an implementation that is not there': (
    train("--gin.FFN_IMPLEMENTATION='cuda'"),
    ['FFN_IMPLEMENTATION', "'cuda'", 'pallas'],
  ),
  'a save that is not there': (
    train("--gin.FFN_SAVE='everything'"),
    ['FFN_SAVE', "'everything'", 'inputs'],
  ),
  'layers in a scan of a word': (
    train("--gin.SCAN_LAYERS='yes'"),
    ['SCAN_LAYERS', "'yes'", 'True or False'],
  ),
  'lengths as a number': (
    train('--gin.TASK_FEATURE_LENGTHS=512'),
    ['TASK_FEATURE_LENGTHS', '512', "{'inputs'"],
  ),
  'lengths without targets': (
    train("--gin.TASK_FEATURE_LENGTHS={'inputs': 64}"),
    ["{'inputs': 64}", "'targets'"],
  ),
  'lengths of strings': (
    train("--gin.TASK_FEATURE_LENGTHS={'inputs': '64', 'targets': 24}"),
    ['TASK_FEATURE_LENGTHS', "'64'"],
  ),
  'negative lengths': (
    train("--gin.TASK_FEATURE_LENGTHS={'inputs': -64, 'targets': 24}"),
    ['TASK_FEATURE_LENGTHS', '-64'],
  ),
  'a rule that is a number': (
    finetune('--gin.FROZEN=5'),
    ['FROZEN', '5', 'string'],
  ),
  'a rule that freezes nothing': (
    finetune("--gin.FROZEN='nothing_has_this'"),
    ['FROZEN', "'nothing_has_this'", 'token_embedder'],
  ),
  'a rule that is no expression': (
    finetune("--gin.FROZEN='('"),
    ['FROZEN', "'('", 'regular expression'],
  ),
  'a best metric that no evaluation gives': (
    finetune("--gin.BEST_METRIC='accurancy'"),
    ['BEST_METRIC', "'accurancy'", 'loss'],
  ),
  'patience without a metric': (
    finetune('--gin.EARLY_STOPPING_PATIENCE=3'),
    ['EARLY_STOPPING_PATIENCE', 'BEST_METRIC'],
  ),
  'a decoder in quotes': (
    finetune("--gin.DECODER='greedy'"),
    ['DECODER', "'greedy'", '@decoding.greedy'],
  ),
  'a decoder that is called': (
    finetune('--gin.DECODER=@decoding.greedy()'),
    ['DECODER', '@decoding.greedy'],
  ),
  'a metric that is not there': (
    finetune("--gin.METRICS=['accurcy']"),
    ["'accurcy'", 'accuracy'],
  ),
  'a metric that is no list': (
    finetune("--gin.METRICS='accuracy'"),
    ['METRICS', "'accuracy'", 'list'],
  ),
  'labels that the pairs have not': (
    finetune("--gin.LABELS=['true', 'false']"),
    ['pairs.jsonl', "'yes'", "['true', 'false']"],
  ),
  'a direct parameter in quotes': (
    train("--gin.network.T5Config.num_heads='2'"),
    ['num_heads', "'2'", 'whole number'],
  ),
  'a direct parameter that is a float': (
    train('--gin.programs.OptimizationConfig.num_microbatches=1.0'),
    ['programs.OptimizationConfig.num_microbatches', '1.0', 'whole number'],
  ),
  'beams of a half': (
    infer(
      "--gin.INFER_INPUTS='file.txt'", '--gin.decoding.beam_search.alpha=-1.0'
    ),
    ['alpha', '-1.0'],
  ),
}

# What commands are to read and to write.
PATHS = {
  'MODEL_DIR is a file': (
    train("--gin.MODEL_DIR='file.txt'"),
    ['MODEL_DIR', 'file.txt'],
  ),
  'MODEL_DIR is below a file': (
    train("--gin.MODEL_DIR='file.txt/run'"),
    ['MODEL_DIR', 'file.txt/run'],
  ),
  'MODEL_DIR cannot be made': (
    train("--gin.MODEL_DIR='/proc/run'"),
    ['MODEL_DIR', '/proc/run'],
  ),
  'MODEL_DIR is empty': (train("--gin.MODEL_DIR=''"), ['MODEL_DIR', "''"]),
  'MODEL_DIR is None': (train('--gin.MODEL_DIR=None'), ['MODEL_DIR', 'None']),
  'MODEL_DIR is a number': (train('--gin.MODEL_DIR=7'), ['MODEL_DIR', '7']),
  'MODEL_DIR on storage of another kind': (
    train("--gin.MODEL_DIR='s3://bucket/run'"),
    ['MODEL_DIR', 's3://bucket/run', 'gs://'],
  ),
  'MODEL_DIR with a null byte': (
    train("--gin.MODEL_DIR='runs/a\\x00b'"),
    ['MODEL_DIR'],
  ),
  'MODEL_DIR is an import': (
    train("--gin.MODEL_DIR='imported'"),
    ['imported', 'INITIAL_CHECKPOINT_PATH'],
  ),
  'TEXT_FILES is a folder': (
    train("--gin.TEXT_FILES='texts'"),
    ['TEXT_FILES', "'texts'"],
  ),
  'TEXT_FILES matches nothing': (
    train("--gin.TEXT_FILES='nothing/*.txt'"),
    ['TEXT_FILES', "'nothing/*.txt'", 'no file'],
  ),
  'TEXT_FILES is a number': (train('--gin.TEXT_FILES=5'), ['TEXT_FILES', '5']),
  'TEXT_FILES is empty': (train("--gin.TEXT_FILES=''"), ['TEXT_FILES', "''"]),
  'TEXT_FILES is an empty list': (
    train('--gin.TEXT_FILES=[]'),
    ['TEXT_FILES', '[]'],
  ),
  'TEXT_FILES is a binary file': (
    train("--gin.TEXT_FILES='broken/binary.bin'"),
    ['broken/binary.bin'],
  ),
  'TEXT_FILES is an empty file': (
    train("--gin.TEXT_FILES='broken/empty.txt'"),
    ['broken/empty.txt'],
  ),
  'VALIDATION_FILES are the same files': (
    train("--gin.VALIDATION_FILES='texts/a.txt'"),
    ['texts/a.txt'],
  ),
  'a share of all to validate on': (
    train('--gin.VALIDATION_FRACTION=1.0'),
    ['VALIDATION_FRACTION', '1.0'],
  ),
  'a document of another kind': (
    train("--gin.DOCUMENT='page'"),
    ['DOCUMENT', "'page'", 'blank_line'],
  ),
  'PAIRS is text': (
    finetune("--gin.PAIRS='file.txt'"),
    ['pairs', 'file.txt'],
  ),
  'PAIRS is not there': (
    finetune("--gin.PAIRS='nothing.jsonl'"),
    ['PAIRS', "'nothing.jsonl'"],
  ),
  'data that is not there': (
    prepared("--gin.PREPARED_DATA='nothing'"),
    ['nothing', 'prepare_data'],
  ),
  'a run as prepared data': (
    prepared("--gin.PREPARED_DATA='runs/relu'"),
    ['runs/relu', 'prepare_data'],
  ),
  'text as prepared data': (
    prepared("--gin.PREPARED_DATA='texts'"),
    ['texts', 'prepare_data'],
  ),
  'a file as prepared data': (
    prepared("--gin.PREPARED_DATA='file.txt'"),
    ['file.txt', 'prepare_data'],
  ),
  'prepared data that was stopped': (
    prepared("--gin.PREPARED_DATA='broken/stopped'"),
    ['broken/stopped', 'prepare_data'],
  ),
  'prepared data that is damaged': (
    prepared("--gin.PREPARED_DATA='broken/damaged'"),
    ['broken/damaged', 'info.json'],
  ),
  'prepared data for other lengths': (
    prepared("--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 24}"),
    ['TASK_FEATURE_LENGTHS', "'inputs': 64"],
  ),
  'prepared data of another task': (
    prepared("--gin.MIXTURE_OR_TASK_NAME='span_corruption_embedded'"),
    ['MIXTURE_OR_TASK_NAME', 'span_corruption_embedded'],
  ),
  'prepared data of a larger vocabulary': (
    prepared('--gin.VOCAB_SIZE=128'),
    ['VOCAB_SIZE', '128', '359'],
  ),
  'a checkpoint that is not there': (
    finetune("--gin.INITIAL_CHECKPOINT_PATH='runs/nothing'"),
    ['runs/nothing', 'a run directory'],
  ),
  'a file as a checkpoint': (
    finetune("--gin.INITIAL_CHECKPOINT_PATH='file.txt'"),
    ['file.txt', 'a run directory'],
  ),
  'an empty folder as a checkpoint': (
    finetune("--gin.INITIAL_CHECKPOINT_PATH='empty'"),
    ['empty', 'a run directory'],
  ),
  'prepared data as a checkpoint': (
    finetune("--gin.INITIAL_CHECKPOINT_PATH='prepared'"),
    ['prepared', 'a run directory'],
  ),
  'a Hugging Face folder as a checkpoint': (
    finetune("--gin.INITIAL_CHECKPOINT_PATH='hf'"),
    ['hf', 'import_weights'],
  ),
  'a checkpoint that is a number': (
    finetune('--gin.INITIAL_CHECKPOINT_PATH=1'),
    ['INITIAL_CHECKPOINT_PATH', '1'],
  ),
  'a checkpoint of another variant': (
    finetune("--gin.ACTIVATION='gelu'"),
    ['ReLU', 'GELU', 'INITIAL_CHECKPOINT_PARTIAL'],
  ),
  'a checkpoint of another model': (
    ['train', '--gin_file=gin/models/tiny.gin', MODEL[1], *PAIRS, FINETUNE]
    + [*INTO, START],
    ['runs/relu', 'another model', 'gin/models'],
  ),
  'a damaged checkpoint to start from': (
    finetune("--gin.INITIAL_CHECKPOINT_PATH='broken/run'"),
    ['broken/run', 'is damaged'],
  ),
  'a run that is asked from nothing': (
    infer("--gin.CHECKPOINT_PATH='runs/nothing'"),
    ['runs/nothing', 'a run directory'],
  ),
  'a run that is asked from the metrics': (
    infer("--gin.CHECKPOINT_PATH='runs/relu/metrics.jsonl'"),
    ['runs/relu/metrics.jsonl', 'a run directory'],
  ),
  'a run that is asked as another variant': (
    ['infer', MODEL[0], '--gin_file=gin/variants/gelu.gin']
    + ['--gin_file=gin/runs/infer.gin', FROM],
    ['ReLU', 'GELU', 'gin/variants'],
  ),
  'a run that is asked as another model': (
    ['infer', '--gin_file=gin/models/tiny.gin', MODEL[1]]
    + ['--gin_file=gin/runs/infer.gin', FROM],
    ['runs/relu', 'not a checkpoint of this model'],
  ),
  'inputs that are not there': (
    infer("--gin.INFER_INPUTS='nothing.txt'"),
    ['INFER_INPUTS', 'nothing.txt'],
  ),
  'inputs that are a folder': (
    infer("--gin.INFER_INPUTS='texts'"),
    ['INFER_INPUTS', 'texts'],
  ),
  'inputs that are empty': (
    infer("--gin.INFER_INPUTS='broken/empty.txt'"),
    ['INFER_INPUTS', 'broken/empty.txt', 'empty'],
  ),
  'inputs that are no text': (
    infer("--gin.INFER_INPUTS='broken/binary.bin'"),
    ['broken/binary.bin', 'line 1', 'UTF-8'],
  ),
  'inputs that are no objects': (
    infer("--gin.INFER_INPUTS='broken/lines.jsonl'"),
    ['broken/lines.jsonl', 'line 2', '"inputs"'],
  ),
  'inputs that are a number': (
    infer('--gin.INFER_INPUTS=5'),
    ['INFER_INPUTS', '5'],
  ),
  'inputs and a task': (
    infer("--gin.INFER_INPUTS='file.txt'", "--gin.INFER_TASK='x'"),
    ['INFER_INPUTS', 'INFER_TASK', 'one of them'],
  ),
  'a task that is not there': (
    infer("--gin.INFER_TASK='nothing'"),
    ['INFER_TASK', "'nothing'"],
  ),
  'a mode that is not there': (
    infer("--gin.INFER_INPUTS='file.txt'", "--gin.INFER_MODE='ask'"),
    ['INFER_MODE', "'ask'", "'predict'"],
  ),
  'scores of text without targets': (
    infer("--gin.INFER_INPUTS='file.txt'", "--gin.INFER_MODE='score'"),
    ['INFER_MODE', 'targets', '.jsonl'],
  ),
  'an answer into a folder': (
    infer("--gin.INFER_INPUTS='file.txt'", "--gin.INFER_OUTPUT='texts'"),
    ['INFER_OUTPUT', 'texts'],
  ),
  'an answer below a file': (
    infer(
      "--gin.INFER_INPUTS='file.txt'", "--gin.INFER_OUTPUT='file.txt/a.jsonl'"
    ),
    ['INFER_OUTPUT', 'file.txt/a.jsonl'],
  ),
  'an answer over something else': (
    infer("--gin.INFER_INPUTS='file.txt'", "--gin.INFER_OUTPUT='pairs.jsonl'"),
    ['INFER_OUTPUT', 'pairs.jsonl'],
  ),
  'a length in quotes': (
    infer("--gin.INFER_INPUTS='file.txt'", "--gin.DECODE_LENGTH='64'"),
    ['DECODE_LENGTH', "'64'", 'whole number'],
  ),
  'a batch of words': (
    infer("--gin.INFER_INPUTS='file.txt'", "--gin.BATCH_SIZE='all'"),
    ['BATCH_SIZE', "'all'", 'whole number'],
  ),
  'an evaluation of nothing': (
    evaluate("--gin.CHECKPOINT_PATH='runs/nothing'"),
    ['runs/nothing', 'a run directory'],
  ),
  'an evaluation of an empty run': (
    evaluate("--gin.CHECKPOINT_PATH='empty'"),
    ['empty', 'a run directory'],
  ),
  'an evaluation of a split that is not there': (
    evaluate("--gin.SPLIT='tests'"),
    ['SPLIT', "'tests'", 'validation'],
  ),
  'an evaluation of steps in quotes': (
    evaluate("--gin.EVAL_STEPS='5'"),
    ['EVAL_STEPS', "'5'", 'whole number'],
  ),
  'an evaluation of no step': (
    evaluate('--gin.EVAL_STEPS=0'),
    ['EVAL_STEPS', '0', 'from 1'],
  ),
  'an evaluation into a folder': (
    evaluate("--gin.EVAL_OUTPUT='texts'", '--gin.EVAL_STEPS=1'),
    ['EVAL_OUTPUT', 'texts'],
  ),
  'predictions of data without texts': (
    ['evaluate', *MODEL, *PREPARED, '--gin_file=gin/runs/eval.gin', FROM]
    + ["--gin.PREDICTIONS_OUTPUT='p.jsonl'"],
    ['PREDICTIONS_OUTPUT', 'p.jsonl'],
  ),
  'no predictions to judge': (judge(), ['--gin.PREDICTIONS="\'...\'"']),
  'predictions that are not there': (
    judge("--gin.PREDICTIONS='nothing.jsonl'"),
    ['PREDICTIONS', 'nothing.jsonl'],
  ),
  'predictions that are none': (
    judge("--gin.PREDICTIONS='pairs.jsonl'"),
    ['pairs.jsonl', 'line 1', '"prediction"'],
  ),
  'too few predictions': (
    judge("--gin.PREDICTIONS='broken/one.jsonl'"),
    ['PREDICTIONS', 'broken/one.jsonl', '1'],
  ),
}

# The other commands and the tools.
COMMANDS = {
  'prepare nothing': (['prepare_data'], ['--output']),
  'prepare into nowhere': (prepare(), ['--output=DIR is missing']),
  'prepare into an empty name': (prepare('--output='), ['--output']),
  'prepare into a file': (
    prepare('--output=file.txt'),
    ['--output=file.txt', 'folder'],
  ),
  'prepare below a file': (
    prepare('--output=file.txt/new'),
    ['--output=file.txt/new'],
  ),
  'prepare into /proc': (prepare('--output=/proc/new'), ['--output=/proc/new']),
  'prepare with fewer than no workers': (
    prepare('--output=new', '--workers=-1'),
    ['--workers', '-1'],
  ),
  'prepare without a data file': (
    ['prepare_data', '--output=new'],
    ['MIXTURE_OR_TASK_NAME', '--gin_file=gin/data/X.gin with X one of'],
  ),
  'prepare what is prepared': (
    ['prepare_data', '--gin_file=gin/data/prepared.gin', '--output=new'],
    ['MIXTURE_OR_TASK_NAME is None'],
  ),
  'prepare over other data': (
    prepare('--output=prepared', "--gin.DOCUMENT='line'"),
    ['prepared', 'another --output'],
  ),
  'prepare pairs': (
    ['prepare_data', *PAIRS, '--output=new'],
    ['span_corruption'],
  ),
  'prepare with lengths in quotes': (
    prepare('--output=new', "--gin.TASK_FEATURE_LENGTHS='512'"),
    ['TASK_FEATURE_LENGTHS', "'512'"],
  ),
  'prepare from a folder': (
    ['prepare_data', TEXT[0], "--gin.TEXT_FILES='texts'", '--output=new'],
    ['TEXT_FILES', 'texts'],
  ),
  'prepare from nothing': (
    ['prepare_data', TEXT[0], "--gin.TEXT_FILES='no/*'", '--output=new'],
    ['TEXT_FILES', 'no/*'],
  ),
  'prepare into a run': (
    prepare('--output=runs/relu'),
    ['--output=runs/relu', 'something else', 'a new folder'],
  ),
  'compile for no slice': (precompile(), ['--topology']),
  'compile for a slice that is not there': (
    precompile('--topology=v5e-7'),
    ['--topology=v5e-7', 'v5e-8'],
  ),
  'compile for a word': (precompile('--topology=tpu'), ['--topology=tpu']),
  'compile a program that is not there': (
    precompile('--topology=v5e-8', "--gin.PROGRAMS=('trian',)"),
    ['PROGRAMS', "'trian'", 'train'],
  ),
  'compile a batch in quotes': (
    precompile('--topology=v5e-8', "--gin.BATCH_SIZE='128'"),
    ['BATCH_SIZE', "'128'", 'whole number'],
  ),
  'compile without a model': (
    ['precompile', '--topology=v5e-8', '--gin_file=gin/runs/precompile.gin'],
    ['MODEL', '--gin_file=gin/models/X.gin with X one of'],
  ),
  'compile and record below a file': (
    precompile('--topology=v5e-8', '--record=file.txt/x.json'),
    ['--record=file.txt/x.json'],
  ),
  'import nothing': (import_weights('--output=new'), ['--checkpoint']),
  'import to nowhere': (import_weights('--checkpoint=hf'), ['--output']),
  'import what is not there': (
    import_weights('--checkpoint=nothing', '--output=new'),
    ['nothing'],
  ),
  'import over a folder': (
    import_weights('--checkpoint=hf', '--output=texts'),
    ['--output=texts'],
  ),
  'import over a file': (
    import_weights('--checkpoint=hf', '--output=file.txt'),
    ['--output=file.txt'],
  ),
  'import a run': (
    import_weights('--checkpoint=runs/relu', '--output=new'),
    ['runs/relu', 'need no import', '--gin.INITIAL_CHECKPOINT_PATH='],
  ),
  'import as another variant': (
    ['import_weights', MODEL[0], '--gin_file=gin/variants/geglu.gin']
    + ['--checkpoint=hf', '--output=new'],
    ['hf', 'relu'],
  ),
  'import without a model': (
    ['import_weights', '--checkpoint=hf', '--output=new'],
    ['--gin_file=gin/models/X.gin'],
  ),
  'export nothing': (['export_hf', '--output=new'], ['--run']),
  'export to nowhere': (['export_hf', '--run=runs/relu'], ['--output']),
  'export what is not there': (
    ['export_hf', '--run=runs/nothing', '--output=new'],
    ['runs/nothing'],
  ),
  'export text': (['export_hf', '--run=texts', '--output=new'], ['texts']),
  'export over a run': (
    ['export_hf', '--run=runs/relu', '--output=runs/relu'],
    ['--output=runs/relu'],
  ),
  'export as another variant': (
    ['export_hf', MODEL[0], '--gin_file=gin/variants/gelu.gin']
    + ['--run=runs/relu', '--output=new'],
    ['ReLU', 'GELU'],
  ),
  'export a damaged run': (
    ['export_hf', '--run=broken/run', '--output=new'],
    ['broken/run', 'is damaged'],
  ),
  'sweep nothing': (['sweep'], ['--gin_file=gin/sweeps/X.gin']),
  'sweep with a training file': (
    ['sweep', PRETRAIN],
    ['gin/runs/pretrain.gin', '--gin_file=gin/sweeps/X.gin'],
  ),
  'sweep no process': (sweep('--processes=0'), ['--processes', '0']),
  'sweep processes of a word': (
    sweep('--processes=two'),
    ['--processes', "'two'"],
  ),
  'sweep a variant that is not there': (
    sweep("--gin.VARIANTS=['relu', 'swigloo']"),
    ['swigloo', 'swiglu'],
  ),
  'sweep variants in a string': (
    sweep("--gin.VARIANTS='relu'"),
    ['VARIANTS', "'relu'", "['relu']"],
  ),
  'sweep seeds of a number': (sweep('--gin.SEEDS=3'), ['SEEDS', '3', 'list']),
  'sweep seeds of words': (sweep("--gin.SEEDS=['a']"), ['SEEDS', "'a'"]),
  'sweep no variant': (sweep('--gin.VARIANTS=[]'), ['at least one variant']),
  'sweep into a number': (sweep('--gin.SWEEP_DIR=5'), ['SWEEP_DIR', '5']),
  'sweep into a file': (
    sweep("--gin.SWEEP_DIR='file.txt'"),
    ['SWEEP_DIR', 'file.txt'],
  ),
  'plot nothing': (['plot'], ['loss RUN']),
  'plot no picture': (['plot', 'runs/relu'], ["'runs/relu'", 'plot loss RUN']),
  'plot no run': (['plot', 'loss'], ['at least one run directory']),
  'plot with a flag of another picture': (
    ['plot', 'loss', 'runs/relu', '--batches=1'],
    ['--batches', 'plot activations'],
  ),
  'draw activations of two': (
    ['plot', 'activations', 'runs/relu', 'imported'],
    ['one run directory', '2'],
  ),
  'plot what is not there': (['plot', 'loss', 'runs/nothing'], ['nothing']),
  'plot folders that are no runs': (
    ['plot', 'loss', 'texts', 'prepared'],
    ['texts', 'prepared', 'metrics.jsonl'],
  ),
  'plot into a folder that is not there': (
    ['plot', 'loss', 'runs/relu', '-o', 'not/there.png'],
    ['not/there.png', 'folder'],
  ),
  'plot into a picture of no kind': (
    ['plot', 'loss', 'runs/relu', '-o', 'loss.doc'],
    ['loss.doc', 'png'],
  ),
  'plot over a folder': (
    ['plot', 'loss', 'runs/relu', '-o', 'broken/folder.png'],
    ['broken/folder.png'],
  ),
  'plot damaged metrics': (
    ['plot', 'loss', 'broken/metrics'],
    ['broken/metrics', 'metrics.jsonl'],
  ),
  'plot an option that is not there': (
    ['plot', 'loss', 'runs/relu', '--wohle'],
    ['--wohle', 'Did you mean --whole?'],
  ),
  'draw activations of nothing': (
    ['plot', 'activations', 'runs/nothing'],
    ['runs/nothing'],
  ),
  'draw activations of text': (['plot', 'activations', 'texts'], ['texts']),
  'draw activations of no batch': (
    ['plot', 'activations', 'runs/relu', '--batches=0'],
    ['--batches', '0'],
  ),
  'draw activations of batches of a word': (
    ['plot', 'activations', 'runs/relu', '--batches=few'],
    ['--batches', "'few'"],
  ),
  'draw activations of a damaged run': (
    ['plot', 'activations', 'broken/run'],
    ['broken/run', 'is damaged'],
  ),
  'report nothing': (['report'], ['RUN']),
  'report what is not there': (
    ['report', 'runs/nothing'],
    ['runs/nothing'],
  ),
  'report text': (['report', 'texts'], ['texts', 'metrics.jsonl']),
  'report damaged metrics': (
    ['report', 'broken/metrics'],
    ['broken/metrics', 'metrics.jsonl'],
  ),
  'report against a row that is not there': (
    ['report', 'runs/relu', '--baseline=swiglu'],
    ['--baseline=swiglu', 'ReLU'],
  ),
  'report a table that is not there': (
    ['report', 'runs/relu', '--table=glu_9'],
    ['--table=glu_9', 'glu_1'],
  ),
  'report into a folder': (
    ['report', 'runs/relu', '-o', 'texts'],
    ['texts'],
  ),
}

SLIPS = FILES | VALUES | PATHS | COMMANDS
