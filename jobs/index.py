"""Put encoder, fusion head, gallery and index into the bundle that serving reads; earlier stages are done first.

python jobs/index.py --preset demo
"""

import sys

from raycd import cli


def main(options: cli.Options) -> None:
    from raycd.runtime import pipeline

    run = pipeline.run(options.config, until="bundle").run
    record = pipeline.recorded(run, "bundle")
    mebibytes = sum(file.stat().st_size for file in run.local("bundle").rglob("*") if file.is_file()) / 2**20
    print(f"bundle:      {run.path('bundle')}")
    index = record["index"]
    print(f"size:        {index['size']:,} images in the index, {mebibytes:,.1f} MiB on disk")
    print(f"index:       {index['kind']}, recall@10 {index['recall']:.4f} of exact search")
    print(f"fingerprint: {record['digest']}")


if __name__ == "__main__":
    sys.exit(cli.run(main, prog="jobs/index.py", description="Index the gallery and write the bundle for serving."))
