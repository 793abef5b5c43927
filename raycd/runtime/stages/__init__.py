"""The stages of the pipeline: each reads what earlier ones wrote and writes a folder of its own.

encoder     the pre-trained CLIP, saved as raycd keeps encoders          (embed.py)
catalogue   draws the demo data, of format synthetic only                (demo_data.py)
zero_shot   its features of all images, and which images are missing     (embed.py)
adapt       CLIP fine-tuned on titles, and its features                  (catalogue.py)
compose     triplets made of attributes                                  (catalogue.py)
stage1      fine-tuned CLIP                                              (train.py)
embed       its features of all images and all text variants             (embed.py)
maps, middle_maps, tokens   what some heads need beside them             (maps.py)
mine        neighbours and candidate pseudo triplets with their scores   (mine.py)
filter      the pseudo triplets that eq. 9 and alpha leave               (mine.py)
stage2      fusion head                                                  (train.py, inversion.py)
evaluate    recall of every variant                                      (evaluate/evaluation.py)
bundle      encoder, head, gallery and index for serving                 (bundle.py)

pipeline.py has their order, and what each depends on.
"""
