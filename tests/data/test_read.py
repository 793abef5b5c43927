import json
from pathlib import Path

from raycd.config import DataConfig, SyntheticConfig
from raycd.data.read import attributes_hash, content_hash, read
from raycd.data.synthetic import write_catalogue


def test_changed_attributes_change_their_own_hash_alone(tmp_path: Path) -> None:
    small = SyntheticConfig(train_images=5, val_images=5, train_triplets=2, val_triplets=2, size=32)
    write_catalogue(tmp_path, small)
    config = DataConfig(format="synthetic", root=str(tmp_path))
    before = read(config)
    file = tmp_path / "attributes.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"DV000000": {"colour": "beige"}}))
    after = read(config)
    assert content_hash(after) == content_hash(before)
    assert attributes_hash(after) != attributes_hash(before)
    assert attributes_hash(read(config)) == attributes_hash(after)
