"""Which of Python's documentation topics does a passage come from? A small BERT, from a configuration, answers.

Nothing is downloaded: the text is that of the module pydoc_data, the tokenizer is trained on it here, and the
model starts from random weights. It is a script for the Hugging Face Trainer but for one line, the import of
Trainer and TrainingArguments.

    python examples/transformers_classifier.py [--num_train_epochs 4 ... any argument]
"""

import sys
from pydoc_data.topics import topics

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, HfArgumentParser, PreTrainedTokenizerFast

from drivetrain import Trainer, TrainingArguments  # from transformers import Trainer, TrainingArguments

LABELS = [
    "compound",
    "debugger",
    "formatstrings",
    "specialnames",
    "string-methods",
    "typesmapping",
    "typesseq",
]
WORDS, STRIDE, BLOCK = 40, 8, 200
DEFAULTS = """
    --output_dir runs/transformers_classifier --num_train_epochs 4 --per_device_train_batch_size 16
    --learning_rate 1e-3 --warmup_ratio 0.1 --weight_decay 0.01 --lr_scheduler_type cosine --evaluation_strategy epoch
    --logging_strategy epoch --save_strategy epoch --save_total_limit 1 --load_best_model_at_end
    --metric_for_best_model accuracy --report_to none --seed 1
"""


def passages():
    """(training, held out): lists of (text, label). Every fifth block of 200 words is held out whole, so that no
    passage of one side overlaps one of the other."""
    train, held_out = [], []
    for label, topic in enumerate(LABELS):
        words = topics[topic].split()
        for number, start in enumerate(range(0, len(words), BLOCK)):
            block, side = words[start : start + BLOCK], held_out if number % 5 == 2 else train
            stride = WORDS if side is held_out else STRIDE
            for first in range(0, max(len(block) - WORDS, 0) + 1, stride):
                side.append((" ".join(block[first : first + WORDS]), label))
    return train, held_out


def train_tokenizer(texts, vocabulary=4000):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=special)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


class Passages(torch.utils.data.Dataset):
    def __init__(self, rows, tokenizer):
        self.encoded = tokenizer([text for text, _ in rows], truncation=True, max_length=128)
        self.labels = [label for _, label in rows]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {
            **{name: column[index] for name, column in self.encoded.items()},
            "labels": self.labels[index],
        }


def compute_metrics(prediction):
    return {"accuracy": float((np.argmax(prediction.predictions, axis=-1) == prediction.label_ids).mean())}


def main():
    (args,) = HfArgumentParser((TrainingArguments,)).parse_args_into_dataclasses(
        DEFAULTS.split() + sys.argv[1:]
    )
    torch.manual_seed(args.seed)
    train, held_out = passages()
    tokenizer = train_tokenizer([text for text, _ in train])
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
        max_position_embeddings=128, num_labels=len(LABELS), id2label=dict(enumerate(LABELS)),
        label2id={name: number for number, name in enumerate(LABELS)}, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    trainer = Trainer(
        model=BertForSequenceClassification(config),
        args=args,
        train_dataset=Passages(train, tokenizer),
        eval_dataset=Passages(held_out, tokenizer),
        tokenizer=tokenizer,
        compute_metrics=compute_metrics,
    )
    trainer.train()
    print(f"held-out accuracy: {trainer.evaluate()['eval_accuracy']:.3f} on {len(held_out)} passages")
    trainer.save_model()


if __name__ == "__main__":
    main()
