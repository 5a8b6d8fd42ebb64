import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Future;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.StringSerializer;

/**
 * A batch of results from Java, which knows of Rollcall nothing but its topic and messages.
 *
 * <p>java -cp "kafka-clients.jar:slf4j-api.jar" Publish.java localhost:9092 rollcall.events my-batch 1000
 */
public class Publish {
    public static void main(String[] arguments) throws Exception {
        String topic = arguments[1];
        String batch = arguments[2];
        int items = Integer.parseInt(arguments[3]);
        Map<String, Object> settings =
                Map.of("bootstrap.servers", arguments[0], "enable.idempotence", true, "acks", "all", "linger.ms", 5);
        List<Future<RecordMetadata>> sent = new ArrayList<>();
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer())) {
            // The key is the batch id: the default partitioner takes it to the batch's home.
            String opened = "{\"type\":\"batch.opened\",\"batch_id\":\"%s\",\"total_items\":%d}";
            sent.add(producer.send(new ProducerRecord<>(topic, batch, opened.formatted(batch, items))));
            for (int item = 0; item < items; item++) {
                String result = "{\"batch_id\":\"%s\",\"item_id\":\"%d\",\"status\":\"%s\",\"effect\":\"created\"}";
                String status = item % 10 == 7 ? "skipped" : "succeeded";
                sent.add(producer.send(new ProducerRecord<>(topic, batch, result.formatted(batch, item, status))));
            }
        }
        for (var each : sent) {
            each.get(); // raises where Kafka did not take it
        }
        System.out.println("published " + items + " results of " + batch);
    }
}
