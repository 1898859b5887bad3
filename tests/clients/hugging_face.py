import sys

from huggingface_hub import InferenceClient

url, photo, out = sys.argv[1:]  # http://localhost:8000 photo.jpg .

asked = "expression=the+red+box&expression=a+blue+ring"
client = InferenceClient(f"{url}/hf/image-segmentation?{asked}")
for segment in client.image_segmentation(photo):
    print(segment.label, segment.score, segment.mask.size)
    segment.mask.save(f"{out}/{segment.label}.png")

# Parameters make the client send JSON: only what it is sure of, and more of each.
print(len(client.image_segmentation(photo, threshold=0.97, mask_threshold=0.3)))
