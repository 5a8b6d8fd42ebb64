package rollcall.bench;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;

/** A batch: what it waits for and how far it is. {@code statuses} is indexed as {@link Event#STATUSES}. */
final class Counts {
    private static final int LONGS = 14;

    long total = -1;
    boolean manifest;
    boolean sealed;
    boolean finalized;
    long matched;
    long duplicates;
    long late;
    final long[] statuses = new long[Event.STATUSES.length];
    final long[] effects = new long[Event.EFFECTS.length];

    static Counts read(byte[] stored) {
        Counts counts = new Counts();
        if (stored == null) {
            return counts;
        }
        ByteBuffer buffer = ByteBuffer.wrap(stored);
        counts.total = buffer.getLong();
        counts.manifest = buffer.get() != 0;
        counts.sealed = buffer.get() != 0;
        counts.finalized = buffer.get() != 0;
        counts.matched = buffer.getLong();
        counts.duplicates = buffer.getLong();
        counts.late = buffer.getLong();
        for (int index = 0; index < counts.statuses.length; index++) {
            counts.statuses[index] = buffer.getLong();
        }
        for (int index = 0; index < counts.effects.length; index++) {
            counts.effects[index] = buffer.getLong();
        }
        return counts;
    }

    byte[] written() {
        ByteBuffer buffer = ByteBuffer.allocate(LONGS * Long.BYTES);
        buffer.putLong(total);
        buffer.put((byte) (manifest ? 1 : 0));
        buffer.put((byte) (sealed ? 1 : 0));
        buffer.put((byte) (finalized ? 1 : 0));
        buffer.putLong(matched);
        buffer.putLong(duplicates);
        buffer.putLong(late);
        for (long count : statuses) {
            buffer.putLong(count);
        }
        for (long count : effects) {
            buffer.putLong(count);
        }
        return buffer.array();
    }

    boolean complete() {
        return sealed && (manifest ? matched : answered()) >= total;
    }

    private long answered() {
        return statuses[0] + statuses[1] + statuses[2] + statuses[3];
    }

    byte[] event(String batch) {
        String outcome = statuses[2] == 0 ? "completed" : statuses[0] + statuses[1] == 0 ? "failed" : "completed_with_errors";
        StringBuilder json = new StringBuilder(256);
        json.append("{\"batch_id\":\"").append(batch).append("\",\"revision\":1,\"outcome\":\"").append(outcome);
        json.append("\",\"item_counts\":{\"total\":").append(total);
        for (int index = 0; index < Event.RETRYING; index++) {
            json.append(",\"").append(Event.STATUSES[index]).append("\":").append(statuses[index]);
        }
        json.append("},\"write_counts\":{");
        for (int index = 0; index < effects.length; index++) {
            json.append(index == 0 ? "\"" : ",\"").append(Event.EFFECTS[index]).append("\":").append(effects[index]);
        }
        return json.append("}}").toString().getBytes(StandardCharsets.UTF_8);
    }
}
