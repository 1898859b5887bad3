import json
import sys

import supervision as sv
from inference_sdk import InferenceConfiguration, InferenceHTTPClient
from PIL import Image

url, photo, out, key = sys.argv[1:]  # http://localhost:8000 photo.jpg . KEY

client = InferenceHTTPClient(api_url=url, api_key=key)
client.configure(InferenceConfiguration(api_key_transport="header"))
prompts = [{"type": "text", "text": "the red box"}, {"type": "text", "text": "a blue ring"}]
answer = client.sam3_concept_segment(photo, prompts=prompts, format="rle")
with open(f"{out}/masks.json", "w") as file:
    json.dump(answer, file)

answer = client.sam3_concept_segment(photo, prompts=prompts)  # polygons
found = sv.Detections.from_sam3(answer, resolution_wh=Image.open(photo).size)
for number, mask in zip(found.class_id, found.mask, strict=True):
    print(prompts[number]["text"], mask.sum())
    Image.fromarray(mask).save(f"{out}/{prompts[number]['text']}.png")
