#!/bin/bash
# Makes the files beside this one; see README.md. Run it in a checkout of commit 60bf1f7: bash make.sh FOLDER
set -eu
here=$(cd "$(dirname "$0")" && pwd)
output=$(mkdir -p "$1" && cd "$1" && pwd)
export OMP_NUM_THREADS=1 PYTHONPATH=$PWD
python -c "import setrec, sys; sys.exit(setrec.__file__ != '$PWD/setrec/__init__.py')" # the setrec of this checkout
rm -rf runs data/shop t5.items-001 published three

shop=(
  --data.name=shop --data.root=data --data.raw=tests/files --data.reader=TableFiles --data.reader.events=events.csv
  --data.reader.items=items.csv --data.reader.user=customer --data.reader.item=product --data.reader.timestamp=bought_at
  --data.reader.rating=stars --data.reader.item_id=id "--data.reader.text_fields=[title, category, brand]"
  --data.cleaning.min_rating=2 --data.cleaning.k_core=3 --data.text=TfidfSVD --data.text.width=16
  "--data.cf=[{class_path: CooccurrenceSVD, init_args: {width: 8}}]" --data.batch_size=128
)
short=(
  --trainer.max_epochs=4 --trainer.accelerator=cpu --trainer.precision=32 --trainer.enable_progress_bar=false
  --trainer.enable_model_summary=false
)
small=(--model.bottleneck=8 "--model.trunk=[16]")

# --- the prepared data, and three models
python main.py fit "${shop[@]}" "${short[@]}" "${small[@]}" --seed_everything=4 --trainer.default_root_dir=runs/t5 \
  --model.backbone=T5Backbone --model.backbone.shape=nano --model.backbone.recency_bias=true --model.lr=8e-3 \
  --model.n_sem=2 --model.n_cf=1 --model.objective=score --model.negatives=warm --model.missing_cf=zero \
  --model.cf_dropout=0.2 --model.cf_score_dropout=0.5 --model.memory=true --model.neighbours=true
python main.py fit "${shop[@]}" "${short[@]}" "${small[@]}" --trainer.default_root_dir=runs/decoder \
  --model.backbone=DecoderBackbone --model.backbone.family=qwen2 --model.backbone.shape=nano --model.lr=8e-3 \
  --model.n_sem=4 --model.n_cf=1 --model.alpha=0.5
python main.py fit "${shop[@]}" "${short[@]}" --trainer.default_root_dir=runs/sasrec \
  --model=SASRecModule --model.width=16 --model.n_blocks=1 --model.inner=32 --model.dropout=0.2 --model.lr=8e-3 \
  --model.warmup_steps=5
for name in t5 decoder sasrec; do
  cp runs/$name/lightning_logs/version_0/checkpoints/epoch-*.ckpt $name.ckpt
done
python "$here/in_python.py" python.ckpt
python main.py test --ckpt_path t5.ckpt --trainer.default_root_dir=runs/t5 --trainer.enable_progress_bar=false

# --- the model with three more items, as a folder to hand on; and a version with two more and one less
python main.py add-items --ckpt_path t5.ckpt --items "$here/three.csv" --output three
python main.py publish --ckpt_path three --output published --license mit \
  --results runs/t5/lightning_logs/version_1/results.json
python main.py add-items --ckpt_path t5.ckpt --items "$here/two.jsonl" --remove "[B1FF072]" \
  --encoder TfidfSVD --encoder.width 16

python "$here/answers.py" expected.json
python "$here/curves.py" golden.json

cp runs/t5/lightning_logs/version_0/config.yaml .
for file in data/shop t5.ckpt decoder.ckpt sasrec.ckpt python.ckpt config.yaml published t5.items-001 expected.json golden.json; do
  rm -rf "${output:?}/$file"
  mkdir -p "$(dirname "$output/$file")"
  cp -r $file "$output/$file"
done
