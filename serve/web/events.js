// What people do with results, reported to a service that keeps it. Nothing waits for it, and what does
// not arrive is lost. Of one event that is reported again the first counts.

import { sendEvents } from "./service.js";

let most = 0; // events of a request; 0: they are not kept

export function startEvents({ events, limits }) {
  most = events ? limits.events : 0;
}

/** What was done with images of the answer that has this id. */
export function tell(queryId, action, imageIds) {
  for (let begin = 0; most > 0 && begin < imageIds.length; begin += most) {
    sendEvents(
      imageIds.slice(begin, begin + most).map((imageId) => ({
        action_name: action,
        query_id: queryId,
        event_attributes: { object: { object_id: imageId } },
      })),
    );
  }
}
