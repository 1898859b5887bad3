import json

from inference_sdk import InferenceHTTPClient

client = InferenceHTTPClient(api_url="http://localhost:8000", api_key="none")
prompts = [{"type": "text", "text": "the red box"}, {"type": "text", "text": "a blue ring"}]
answer = client.sam3_concept_segment("photo.jpg", prompts=prompts, format="rle")
for result in answer["prompt_results"]:
    for prediction in result["predictions"]:
        print(result["echo"]["text"], prediction["confidence"], prediction["masks"]["size"])
with open("masks.json", "w") as file:
    json.dump(answer, file)
