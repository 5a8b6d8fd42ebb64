package rollcall.bench;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;

/** What the job needs of a message. The whole value is parsed, so that broken JSON is noticed. */
final class Event {
    static final String[] STATUSES = {"succeeded", "partial", "failed", "skipped", "retrying"};
    static final String[] EFFECTS = {"created", "updated", "unchanged"};
    static final int RETRYING = 4;

    private static final JsonFactory JSON = new JsonFactory();

    String type = "item.result";
    String itemId;
    int status = -1;
    int effect = -1;
    int attempt = 1;
    long total = -1;
    boolean sealed = true;
    long from;
    long to;
    List<String> itemIds;

    static Event parsed(byte[] value) {
        Event event = new Event();
        try (JsonParser json = JSON.createParser(value)) {
            if (json.nextToken() != JsonToken.START_OBJECT) {
                throw new IllegalArgumentException("not a JSON object");
            }
            while (json.nextToken() == JsonToken.FIELD_NAME) {
                String name = json.currentName();
                json.nextToken();
                switch (name) {
                    case "type" -> event.type = json.getText();
                    case "item_id" -> event.itemId = json.getText();
                    case "status" -> event.status = known(STATUSES, json.getText());
                    case "effect" -> event.effect = known(EFFECTS, json.getText());
                    case "attempt" -> event.attempt = json.getIntValue();
                    case "total_items" -> event.total = json.getLongValue();
                    case "sealed" -> event.sealed = json.getBooleanValue();
                    case "from" -> event.from = json.getLongValue();
                    case "to" -> event.to = json.getLongValue();
                    case "item_ids" -> {
                        event.itemIds = new ArrayList<>();
                        while (json.nextToken() != JsonToken.END_ARRAY) {
                            event.itemIds.add(json.getText());
                        }
                    }
                    default -> json.skipChildren();
                }
            }
            return event;
        } catch (IOException error) {
            throw new IllegalArgumentException("broken JSON", error);
        }
    }

    private static int known(String[] names, String name) {
        for (int index = 0; index < names.length; index++) {
            if (names[index].equals(name)) {
                return index;
            }
        }
        throw new IllegalArgumentException("unknown word " + name);
    }
}
